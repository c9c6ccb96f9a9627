from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxq.accuracy.search import Found, bisect, one_by_one, put_back, refine, repair

LAYERS = [f"layer{number}" for number in range(16)]


class Trials:
    """Counts trials; a setting reaches the goal when every culprit is treated well enough."""

    def __init__(self, culprits: set[str], enough: Mapping[str, str] | None = None):
        self.culprits, self.enough = culprits, enough or {}
        self.settings: list[dict[str, str]] = []

    def __call__(self, setting: Mapping[str, str], why: str) -> float:
        self.settings.append(dict(setting))
        cured = {
            layer for layer in self.culprits if setting.get(layer, "") in ("float", self.enough.get(layer, "float"))
        }
        return (len(self.culprits) - len(cured)) / 10


def driven(trial, proposals):
    """Tells a search what comes of its proposals, until its end."""
    told = None
    while True:
        try:
            told = trial(*proposals.send(told))
        except StopIteration as end:
            return end.value


def order_with(culprits: set[str]) -> list[str]:
    return sorted(LAYERS, key=lambda layer: layer not in culprits)


@given(st.sets(st.sampled_from(LAYERS), min_size=1))
def test_bisection_reverts_exactly_the_culprits_of_a_right_ranking(culprits):
    trial = Trials(culprits)
    found = driven(trial, bisect(order_with(culprits), "float", {}, len(LAYERS)))
    assert found == Found(dict.fromkeys(order_with(culprits)[: len(culprits)], "float"), True)
    assert len(trial.settings) <= 9  # 2 log2(16) + 1


@given(st.sets(st.sampled_from(LAYERS), min_size=1), st.permutations(LAYERS))
def test_whatever_the_ranking_only_culprits_stay_reverted(culprits, order):
    trial = Trials(culprits)
    found = driven(trial, bisect(order, "float", {}, len(LAYERS)))
    assert found.reached
    fewer = driven(trial, put_back(found, sorted(found.setting, key=lambda layer: layer in culprits), {}))
    assert fewer.setting.keys() == culprits


@given(st.sets(st.sampled_from(LAYERS), min_size=1), st.integers(1, 40))
def test_where_bisection_starts_changes_what_it_tries_and_not_what_it_finds(culprits, first):
    trial = Trials(culprits)
    found = driven(trial, bisect(order_with(culprits), "float", {}, len(LAYERS), first))
    assert found == driven(Trials(culprits), bisect(order_with(culprits), "float", {}, len(LAYERS)))
    assert len(trial.settings[0]) == min(first, len(LAYERS))


def test_bisection_says_that_all_allowed_reverts_are_not_enough():
    trial = Trials({"layer0", "layer1", "layer2"})
    found = driven(trial, bisect(LAYERS, "float", {}, 2))
    assert not found.reached
    assert max(map(len, trial.settings)) == 2


def test_the_cheapest_repair_that_suffices_is_taken():
    trial = Trials({"layer0", "layer1"}, {"layer0": "cheap"})
    both_in_float = Found({"layer0": "float", "layer1": "float"}, True)
    found = driven(trial, repair(both_in_float, ["layer0", "layer1"], ["cheap", "float"]))
    assert found.setting == {"layer0": "cheap", "layer1": "float"}


def test_a_layer_is_put_back_to_what_it_was_at_the_start():
    trial = Trials({"layer1"})
    both_in_float = Found({"layer0": "float", "layer1": "float"}, True)
    found = driven(trial, put_back(both_in_float, ["layer0", "layer1"], {"layer0": "minmax"}))
    assert found.setting == {"layer0": "minmax", "layer1": "float"}


def test_ranking_anew_finds_fewer_layers_than_a_bad_first_ranking():
    culprits = {"layer0", "layer1", "layer9"}
    trial = Trials(culprits)
    first = driven(trial, bisect(LAYERS, "float", {}, 16))
    assert len(first.setting) == 10

    def rank(setting):
        return [layer for layer in order_with(culprits) if layer not in setting]

    assert len(driven(trial, refine(first, rank, "float", {})).setting) < 10


def test_ranking_anew_works_from_a_start_that_names_all_layers():
    """As `tune_hyperparams` leaves it."""
    culprits = {"layer0", "layer1", "layer9"}
    start = dict.fromkeys(LAYERS, "mse")

    def rank(setting):
        return [layer for layer in order_with(culprits) if setting.get(layer) != "float"]

    def reverted(found):
        return {layer for layer, step in found.setting.items() if step == "float"}

    trial = Trials(culprits)
    first = driven(trial, bisect(LAYERS, "float", start, 16))
    assert len(reverted(first)) == 10
    assert culprits <= reverted(driven(trial, refine(first, rank, "float", start))) < reverted(first)


def test_one_by_one_stops_at_the_first_setting_that_reaches_the_goal():
    trial = Trials({"layer3", "layer5"})

    def rank(setting):
        return [layer for layer in order_with({"layer3", "layer5"}) if layer not in setting]

    found = driven(trial, one_by_one(rank, "float", {}, 16))
    assert found == Found({"layer3": "float", "layer5": "float"}, True)
    assert [len(setting) for setting in trial.settings] == [0, 1, 2]


def test_the_last_layer_counts():
    """NNCF reports a failure when reverting the very last layer reaches the goal."""
    trial = Trials({"a", "b"})
    found = driven(trial, one_by_one(lambda setting: [x for x in "ab" if x not in setting], "float", {}, 2))
    assert found.reached


@pytest.mark.parametrize(("undo", "kept"), [(True, {"worse1", "good"}), (False, set())])
def test_one_by_one_undoes_the_second_revert_that_makes_it_worse(undo, kept):
    """The first one is accepted, as in POT; after an undo the layers are ranked anew. The best setting seen is returned."""
    rankings = []

    def trial(setting, why):
        return 0.3 - 0.25 * ("good" in setting) + 0.2 * len([x for x in setting if x.startswith("worse")])

    def rank(setting):
        rankings.append(dict(setting))
        return [x for x in ("worse1", "worse2", "good") if x not in setting]

    found = driven(trial, one_by_one(rank, "float", {}, 3, undo=undo))
    assert not found.reached
    assert found.setting.keys() == kept
    assert len(rankings) == 2


def test_one_by_one_ends_even_if_every_revert_makes_it_worse():
    settings = []

    def trial(setting, why):
        settings.append(setting)
        return 1.0 + len(setting)

    found = driven(trial, one_by_one(lambda s: [x for x in LAYERS if x not in s], "float", {}, 40))
    assert found == Found({}, False)
    assert len(settings) <= 1 + 40


def test_one_by_one_comes_to_the_end_of_the_layers_whatever_is_undone_on_the_way():
    """Two trials for each layer are enough: of two in a row at most one is undone."""
    worse = {"layer1", "layer2", "layer3"}  # make things worse, and all are needed
    layers = [f"layer{number}" for number in range(6)]

    def trial(setting, why):
        return 0.0 if len(setting) == len(layers) else 1.0 - 0.1 * len(setting) + 0.5 * len(worse & setting.keys())

    def rank(setting):
        return [layer for layer in layers if layer not in setting]

    found = driven(trial, one_by_one(rank, "float", {}, 2 * len(layers)))
    assert found.reached
