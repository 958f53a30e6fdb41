# SPDX-License-Identifier: Apache-2.0
"""The one exception for what a user can put right."""


class InputError(ValueError):
    """A setting, file or argument cannot be used as given.

    The message says what must hold, what was given and what to do. The binaries print
    it as one line, without a stack trace, and exit with code 1.
    """
