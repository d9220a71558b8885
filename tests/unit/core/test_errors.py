import pytest

from soundstage.core import errors
from soundstage.core.errors import Cancelled, ConfigError, RequestError, SoundstageError

TREE = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("error", TREE, ids=lambda e: e.__name__)
def test_one_root_catches_everything_raised_on_purpose(error):
    assert issubclass(error, SoundstageError)


@pytest.mark.parametrize("error", TREE, ids=lambda e: e.__name__)
def test_the_drawing_of_the_tree_is_complete(error):
    assert error.__name__ in errors.__doc__


def test_wrong_values_are_value_errors_too():
    assert issubclass(RequestError, ValueError)
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(Cancelled, ValueError)
