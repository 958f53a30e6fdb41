# SPDX-License-Identifier: Apache-2.0
"""Says which view of Taskonomy is in which split.

By the first of these rules that applies:

1.  As released, if that is asked for: train where P < 1200, else validation.
2.  By `validation_share`, if one is asked for: the last buildings by name, or of one
    building the last points, are validation.
3.  The lists train_val_test_NAME.csv, wherever they are in the folder, if buildings
    have names. There may be several lists; buildings in none of them are not used.
4.  One building: train where P < 1200, else validation (as released). Both then show
    the same rooms.
5.  Several buildings: the last fifth of them by name, at least one, is validation.
"""

from __future__ import annotations

import array
import operator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf.data.taskonomy.finding import SPLITS
from mtr_tf.data.taskonomy.finding import Listing
from mtr_tf.data.taskonomy.finding import View
from mtr_tf.data.taskonomy.finding import list_name
from mtr_tf.errors import InputError

TRAIN_POINTS = 1200


def splits(
    listing: Listing, *, as_released: bool = False, validation_share: float = 0.0
) -> dict[str, Sequence[View]]:
    """Sorts the views into splits, by the rules of the module's docstring.

    Splits without a view are left out.

    Raises:
      InputError: none of the buildings is in the lists; the share is not possible.
    """
    buildings = {view.building for view in listing.views}
    by_lists = not validation_share and _by_lists(listing, as_released)
    by_points = as_released or (len(buildings) == 1 and not by_lists)
    unit_of = operator.attrgetter("point" if by_points else "building")
    units = sorted(set(map(unit_of, listing.views)) if by_points else buildings)
    if by_lists:
        lists = listing.lists or {}
        split_of = {name: lists.get(list_name(name), "") for name in units}
    else:
        if validation_share:
            start = _start_of_share(listing, units, validation_share, as_released)
        else:
            start = TRAIN_POINTS if by_points else units[-max(1, len(units) // 5)]
        split_of = {unit: "train" if unit < start else "validation" for unit in units}
    split_places = {split: array.array("q") for split in SPLITS.values()}
    for place, view in enumerate(listing.views):
        split = split_of[unit_of(view)]
        if split:
            split_places[split].append(place)
    if not any(split_places.values()):
        raise InputError(
            "The split lists train_val_test_*.csv must name a building of the folder, "
            f"but name none of {', '.join(units)}; add the building's list."
        )
    return {
        split: listing.views.select(places)
        for split, places in split_places.items()
        if places
    }


def _by_lists(listing: Listing, as_released: bool) -> bool:
    """Whether the split lists say which building is in which split."""
    has_names = any(view.building for view in listing.views)
    return listing.lists is not None and has_names and not as_released


def _start_of_share(
    listing: Listing, units: Sequence[Any], share: float, as_released: bool
) -> Any:
    """The first of the buildings, or of the points of one, that is validation."""
    if as_released:
        raise InputError(
            "--validation_share and --as_released both choose the validation split; "
            "leave out one of them."
        )
    if not 0 < share <= 1:
        raise InputError(
            f"--validation_share must be a share, from 0 to 1; got {share!r}."
        )
    if len(units) < 2:
        raise InputError(
            "--validation_share needs at least two points or buildings to divide, but "
            f"there is only one, {listing.views[0].name}; download more of Taskonomy."
        )
    return units[-min(max(1, round(share * len(units))), len(units) - 1)]


def missing(
    listing: Listing,
    views_by_split: Mapping[str, Sequence[View]],
    *,
    as_released: bool = False,
) -> dict[str, str]:
    """For each of train and validation that has no view: why, and what to do."""
    if _by_lists(listing, as_released):
        reason = "the lists train_val_test_*.csv name no building of the folder for it"
        cure = "add one"
    else:
        side = "below" if "train" in views_by_split else "from there on"
        reason = (
            f"points from {TRAIN_POINTS} on are validation, and all points there are "
            f"lie {side}"
        )
        cure = "add other points"
    cure += ", or divide the views with, for example, --validation_share=0.2"
    if as_released:
        cure += " (without --as_released)"
    return {
        name: f"{reason}; {cure}."
        for name in ("train", "validation")
        if name not in views_by_split
    }
