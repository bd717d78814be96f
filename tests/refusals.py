"""What tests ask of an error: its code, and the names in it that help the user. The wording is not asserted."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kdbench.errors import Code, SourceError, UserError


@contextmanager
def refused(
    code: Code, *named: object, kind: type[UserError] = SourceError
) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect an error of `kind` with this code, whose message contains each of `named`."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, caught.value.line
    assert [name for name in named if str(name) not in str(caught.value)] == [], caught.value.line
