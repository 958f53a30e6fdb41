# SPDX-License-Identifier: Apache-2.0
"""Pages that are made from templates."""

from __future__ import annotations

from typing import Any

import jinja2

_PACKAGE = "mtr_tf.show"


def environment(package: str, **options: Any) -> jinja2.Environment:
    """The templates of a package: undefined names are errors, blocks leave no lines.

    They may also import the templates of this package, such as tables.html.
    """
    packages = dict.fromkeys((package, _PACKAGE))
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
