# SPDX-License-Identifier: Apache-2.0
"""Pages that are made from templates."""

from __future__ import annotations

from typing import Any

import jinja2

_OWN = "mtr_tf.show"


def environment(package: str, **options: Any) -> jinja2.Environment:
    """The templates of a package: unknown names are errors, blocks leave no lines.

    They may import those of this package, such as tables.html, too.
    """
    packages = dict.fromkeys((package, _OWN))
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(one) for one in packages]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
