import errno
import os

import pytest

from soundstage.core.errors import RequestError, ResourceError
from soundstage.core.files import atomic_output, check_writable


def test_finished_output_is_moved_into_place(tmp_path):
    path = tmp_path / "out.bin"
    with atomic_output(path) as temporary:
        temporary.write_bytes(b"done")
        assert not path.exists()
        assert temporary.parent == tmp_path
    assert path.read_bytes() == b"done"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, SystemExit])
def test_unfinished_output_vanishes_and_the_old_file_stays(tmp_path, failure):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def write_half():
        with atomic_output(path) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_says_so(tmp_path, code):
    with (
        pytest.raises(ResourceError, match=r"no space left to write .*out\.bin"),
        atomic_output(tmp_path / "out.bin"),
    ):
        raise OSError(code, os.strerror(code))


def test_other_refusals_carry_the_system_reason(tmp_path):
    with (
        pytest.raises(ResourceError, match=r"cannot write .*Input/output error"),
        atomic_output(tmp_path / "a"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_output_mode_follows_the_users_umask(tmp_path):
    path = tmp_path / "out.bin"
    with atomic_output(path) as temporary:
        temporary.write_bytes(b"")
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_checking_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_and_folders_as_files_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"output folder .*nowhere does not exist"):
        check_writable(tmp_path / "nowhere" / "clip.mp4")
    with pytest.raises(RequestError, match="is a folder; name a file inside it"):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="does not exist"):
        check_writable(tmp_path / "file" / "clip.mp4")


def test_names_that_the_file_system_refuses_are_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot write output"):
        check_writable(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folders_and_files_are_refused(tmp_path):
    (tmp_path / "old.mp4").touch(mode=0o400)
    with pytest.raises(RequestError, match="read-only"):
        check_writable(tmp_path / "old.mp4")
    tmp_path.chmod(0o500)
    with pytest.raises(RequestError, match="Permission denied"):
        check_writable(tmp_path / "clip.mp4")
    tmp_path.chmod(0o700)
