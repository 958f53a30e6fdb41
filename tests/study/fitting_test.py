# SPDX-License-Identifier: Apache-2.0
"""Studies on data that lack tasks lose what cannot be done, and nothing else."""

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
    tasks = rooms.train_config("eleven", 0).tasks
    assert fitting.to_tasks(rooms, "rooms", tasks) is rooms


def test_rooms_on_cityscapes(rooms):
    fitted_study = fitting.to_tasks(rooms, "cityscapes", CITYSCAPES)
    removed_names = {v.name for v in rooms.variants} - {
        v.name for v in fitted_study.variants
    }
    assert removed_names == {"s+n 1", "s+n .1", "d+n 1", "d+n .1", "eleven"}
    assert [spec.name for spec in rooms.attacks if spec.name != "tasks"] == [
        spec.name for spec in fitted_study.attacks
    ]
    claims = {claim.id: claim for claim in claim_file.read(fitted_study)}
    theory = {"T2", "T2 1/2", "T3", "T4"}  # On the model of eleven tasks.
    assert {claim["id"] for claim in rooms.claims} - set(claims) == theory
    assert claims["E4 1"].better == ("s+d 1", "s+A 1", "s+d+A 1")
    assert claims["E4 1"].than == ("s",)
    assert claims["A2 matched"].matched == ("s", "s early", "s earlier")
    assert claims["E5"].better == ("d+s 1", "d+s .1")
    names = [point.variant for point in claims["F2 APGD"].terms[0].points]
    assert names == ["s+d .1", "s+A .1", "s+d+A .1"]
    assert fitted_study.about.startswith(rooms.about)
    assert "cityscapes has no normal or " in fitted_study.about
    assert "claims T2, T2 1/2, T3, T4." in fitted_study.about
    assert fitted_study.train_config("s", 0) == rooms.train_config("s", 0)


def test_a_measure_goes_with_what_is_taken_off(rooms):
    """A claim whose `minus` gives other keys for the same variants stays."""
    slope = {"attack": "tasks", "measure": "tasks", "quantity": "slope"}
    measure = slope | {"variants": ["s"], "norm": "l2", "normalisation": "unit"}
    claims = [
        {"id": "off", "measure": measure | {"minus": {"variants": ["s+n 1"]}}},
        {"id": "other", "measure": measure | {"minus": {"norm": "l1"}}},
        {"id": "plain", "measure": measure | {"minus": {}}},
    ]
    variants, attacks = ("s", "s+A 1"), ("tasks",)
    results = [fitting._claim(claim, variants, attacks) for claim in claims]
    assert results == [None, *claims[1:]]


def test_what_needs_a_source_or_a_term_goes_with_it(rooms):
    fitted_study = fitting.to_tasks(rooms, "heights", ("depth", "normal"))
    assert {v.name for v in fitted_study.variants} == {"d", "d+n 1", "d+n .1"}
    assert [spec.name for spec in fitted_study.attacks] == ["depth"]
    claims = claim_file.read(fitted_study)
    assert [claim.id for claim in claims] == ["E5"]
    spec = dataclasses.replace(rooms.spec("depth"), source="s")
    study = dataclasses.replace(rooms, attacks=(spec,), claims=())
    assert not fitting.to_tasks(study, "heights", ("depth", "normal")).attacks


def test_what_begins_with_a_model_that_is_left_out_goes_with_it(rooms):
    names = ("d", "s", "d+n 1")
    init_from = {"d": "s", "d+n 1": "d", "s": ""}
    variants = (
        dataclasses.replace(rooms.variant(name), init_from=init_from[name])
        for name in names
    )
    study = dataclasses.replace(rooms, variants=tuple(variants), attacks=(), claims=())
    fitted_study = fitting.to_tasks(study, "flat", ("seg",))
    assert [v.name for v in fitted_study.variants] == ["s"]
    with pytest.raises(InputError, match="no models for heights"):
        fitting.to_tasks(study, "heights", ("depth", "normal"))


def test_variants_with_data_of_their_own_stay(rooms):
    names = ("s", "d", "d+n 1")
    s, *variants = map(rooms.variant, names)
    variants = [
        dataclasses.replace(v, train=v.train | {"dataset": "rooms"}) for v in variants
    ]
    study = dataclasses.replace(rooms, variants=(s, *variants), attacks=(), claims=())
    assert fitting.to_tasks(study, "flat", ("seg",)) is study
    tuned = dataclasses.replace(variants[0], init_from="s")  # "s" is left out.
    study = dataclasses.replace(study, variants=(s, tuned, variants[1]))
    fitted_study = fitting.to_tasks(study, "heights", ("depth",))
    assert [v.name for v in fitted_study.variants] == ["d+n 1"]


def test_data_without_any_of_the_models(rooms):
    with pytest.raises(
        InputError, match="no models for plain, which has the tasks auto"
    ):
        fitting.to_tasks(rooms, "plain", ("autoencoder",))
