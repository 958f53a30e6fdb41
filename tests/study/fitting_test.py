# SPDX-License-Identifier: Apache-2.0
"""Studies on data that lack tasks: what is left can be done, nothing else is gone."""

from __future__ import annotations

import dataclasses

import pytest

from mtr_tf.errors import InputError
from mtr_tf.study import claim_file
from mtr_tf.study import fitting
from mtr_tf.study import study_file

CITYSCAPES = ("seg", "depth", "edge_texture", "keypoints2d", "autoencoder")


@pytest.fixture(scope="module")
def rooms():
    return study_file.load("rooms")


def test_all_tasks_change_nothing(rooms):
    has = rooms.train_config("eleven", 0).tasks
    assert fitting.to_tasks(rooms, "rooms", has) is rooms


def test_rooms_on_cityscapes(rooms):
    fitted = fitting.to_tasks(rooms, "cityscapes", CITYSCAPES)
    gone = {each.name for each in rooms.variants} - {v.name for v in fitted.variants}
    assert gone == {"s+n 1", "s+n .1", "d+n 1", "d+n .1", "eleven"}
    assert [each.name for each in rooms.attacks if each.name != "tasks"] == [
        each.name for each in fitted.attacks
    ]
    claims = {claim.id: claim for claim in claim_file.read(fitted)}
    theory = {"T2", "T2 1/2", "T3", "T4"}  # On the model of eleven tasks.
    assert {claim["id"] for claim in rooms.claims} - set(claims) == theory
    assert claims["E4 1"].better == ("s+d 1", "s+A 1", "s+d+A 1")
    assert claims["E4 1"].than == ("s",)
    assert claims["A2 matched"].matched == ("s", "s early", "s earlier")
    assert claims["E5"].better == ("d+s 1", "d+s .1")
    small = [point.variant for point in claims["F2 APGD"].terms[0].points]
    assert small == ["s+d .1", "s+A .1", "s+d+A .1"]
    assert fitted.about.startswith(rooms.about)
    assert "cityscapes has no normal or " in fitted.about
    assert "claims T2, T2 1/2, T3, T4." in fitted.about
    assert fitted.train_config("s", 0) == rooms.train_config("s", 0)


def test_a_measure_goes_with_what_is_taken_off(rooms):
    """But not with what is taken off of the same variants, by other keys."""
    slope = {"attack": "tasks", "measure": "tasks", "quantity": "slope"}
    given = slope | {"variants": ["s"], "norm": "l2", "normalisation": "unit"}
    made = [
        {"id": "off", "measure": given | {"minus": {"variants": ["s+n 1"]}}},
        {"id": "other", "measure": given | {"minus": {"norm": "l1"}}},
        {"id": "plain", "measure": given | {"minus": {}}},
    ]
    kept, attacks = ("s", "s+A 1"), ("tasks",)
    found = [fitting._claim(claim, kept, attacks) for claim in made]
    assert found[0] is None
    assert found[1] == made[1]
    assert found[2] is None or found[2] == made[2]


def test_what_needs_a_source_or_a_term_goes_with_it(rooms):
    fitted = fitting.to_tasks(rooms, "heights", ("depth", "normal"))
    assert {each.name for each in fitted.variants} == {"d", "d+n 1", "d+n .1"}
    assert [each.name for each in fitted.attacks] == ["depth"]
    claims = claim_file.read(fitted)
    assert [claim.id for claim in claims] == ["E5"]
    sourced = dataclasses.replace(rooms.spec("depth"), source="s")
    study = dataclasses.replace(rooms, attacks=(sourced,), claims=())
    assert not fitting.to_tasks(study, "heights", ("depth", "normal")).attacks


def test_what_begins_with_a_model_that_is_left_out_goes_with_it(rooms):
    names = ("d", "s", "d+n 1")
    first = {"d": "s", "d+n 1": "d", "s": ""}
    variants = (
        dataclasses.replace(rooms.variant(name), init_from=first[name])
        for name in names
    )
    study = dataclasses.replace(rooms, variants=tuple(variants), attacks=(), claims=())
    fitted = fitting.to_tasks(study, "flat", ("seg",))
    assert [each.name for each in fitted.variants] == ["s"]
    with pytest.raises(InputError, match="no models for heights"):
        fitting.to_tasks(study, "heights", ("depth", "normal"))


def test_variants_with_data_of_their_own_stay(rooms):
    names = ("s", "d", "d+n 1")
    s, *others = map(rooms.variant, names)
    others = [
        dataclasses.replace(v, train=v.train | {"dataset": "rooms"}) for v in others
    ]
    study = dataclasses.replace(rooms, variants=(s, *others), attacks=(), claims=())
    assert fitting.to_tasks(study, "flat", ("seg",)) is study
    tuned = dataclasses.replace(others[0], init_from="s")  # Of what is left out.
    study = dataclasses.replace(study, variants=(s, tuned, others[1]))
    fitted = fitting.to_tasks(study, "heights", ("depth",))
    assert [each.name for each in fitted.variants] == ["d+n 1"]


def test_data_without_any_of_the_models(rooms):
    with pytest.raises(
        InputError, match="no models for plain, which has the tasks auto"
    ):
        fitting.to_tasks(rooms, "plain", ("autoencoder",))
