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
from collections.abc import Mapping
from collections.abc import Sequence

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
    buildings = sorted({view.building for view in listing.views})
    if validation_share:
        return _by_share(listing, validation_share, as_released)
    if listing.lists is not None and buildings != [""] and not as_released:
        split_of = {name: listing.lists.get(list_name(name), "") for name in buildings}
    elif len(buildings) > 1 and not as_released:
        held_out = buildings[-max(1, len(buildings) // 5) :]
        split_of = {
            name: "validation" if name in held_out else "train" for name in buildings
        }
    else:
        split_of = None
    split_places = {split: array.array("q") for split in SPLITS.values()}
    for place, view in enumerate(listing.views):
        if split_of is None:
            split = "train" if view.point < TRAIN_POINTS else "validation"
        else:
            split = split_of[view.building]
        if split:
            split_places[split].append(place)
    if not any(split_places.values()):
        raise InputError(
            "The split lists train_val_test_*.csv must name a building of the folder, "
            f"but name none of {', '.join(buildings)}; add the building's list."
        )
    return _split_views(listing, split_places)


def _split_views(
    listing: Listing, split_places: Mapping[str, Sequence[int]]
) -> dict[str, Sequence[View]]:
    """The views of each split that has any, by their places in the listing."""
    return {
        split: listing.views.select(places)
        for split, places in split_places.items()
        if places
    }


def _by_share(
    listing: Listing, share: float, as_released: bool
) -> dict[str, Sequence[View]]:
    """Splits by share: the last buildings, or points of one, are validation."""
    if as_released:
        raise InputError(
            "--validation_share and --as_released both choose the validation split; "
            "leave out one of them."
        )
    if not 0 < share <= 1:
        raise InputError(
            f"--validation_share must be a share, from 0 to 1; got {share!r}."
        )
    is_single = len({view.building for view in listing.views}) == 1
    view_units = [view.point if is_single else view.building for view in listing.views]
    units = sorted(set(view_units))
    if len(units) < 2:
        raise InputError(
            "--validation_share needs at least two points or buildings to divide, but "
            f"there is only one, {listing.views[0].name}; download more of Taskonomy."
        )
    count = min(max(1, round(share * len(units))), len(units) - 1)
    held_out = set(units[-count:])
    split_places = {"train": array.array("q"), "validation": array.array("q")}
    for place, unit in enumerate(view_units):
        split_places["validation" if unit in held_out else "train"].append(place)
    return _split_views(listing, split_places)


def missing(
    listing: Listing,
    views_by_split: Mapping[str, Sequence[View]],
    *,
    as_released: bool = False,
) -> dict[str, str]:
    """For each of train and validation that has no view: why, and what to do."""
    missing_splits = [
        name for name in ("train", "validation") if name not in views_by_split
    ]
    buildings = {view.building for view in listing.views}
    advice = "divide the views with, for example, --validation_share=0.2"
    if as_released:
        advice += " (without --as_released)"
    if listing.lists is not None and buildings != {""} and not as_released:
        reason = "the lists train_val_test_*.csv name no building of the folder for it"
        return {name: f"{reason}; add one, or {advice}." for name in missing_splits}
    reason = f"points from {TRAIN_POINTS} on are validation, and all points there are "
    reason += "lie " + ("below" if "train" in views_by_split else "from there on")
    return {
        name: f"{reason}; add other points, or {advice}." for name in missing_splits
    }
