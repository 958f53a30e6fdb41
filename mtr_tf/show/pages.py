# SPDX-License-Identifier: Apache-2.0
"""Pages that are made from templates."""

from __future__ import annotations

from typing import Any

import jinja2


def environment(package: str, **options: Any) -> jinja2.Environment:
    """The templates of a package: unknown names are errors, blocks leave no lines."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
