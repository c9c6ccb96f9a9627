"""Searches that were stopped, and the folders in which they go on."""

import json
import shutil
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from accuracy_models import BAD, MINMAX, accuracy, chain, images, labelled, ruined
from kills import Killed, every_kill, killed_at

import jaxq
from jaxq import AdvancedAccuracyRestorerParameters as Parameters
from jaxq.accuracy import space, store, trials
from jaxq.accuracy.space import quantized
from jaxq.analysis import by_function
from jaxq.errors import AccuracyError, ConfigError, JaxqWarning
from jaxq.graph.ir import FrozenDict


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    """One layer of the quantized model has absurd ranges."""
    monkeypatch.setattr(space, "quantized", lambda *given: ruined(quantized(*given), BAD))


def search(
    work,
    function=accuracy,
    *,
    model=None,
    data=None,
    calibration=None,
    quantization=MINMAX,
    max_drop=0.1,
    on_step=None,
    **options,
):
    """The last report of a search in a folder, and its model."""
    reports = []

    def listen(report):
        reports.append(report)
        if on_step is not None:
            on_step(report)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxqWarning)
        try:
            model = jaxq.quantize_with_accuracy_control(
                chain() if model is None else model,
                images(12) if calibration is None else calibration,
                list(labelled()) if data is None else data,
                function,
                max_drop=max_drop,
                advanced_quantization_parameters=quantization,
                advanced_accuracy_restorer_parameters=Parameters(intermediate_model_dir=work, **options),
                on_step=listen,
            )
        except AccuracyError as error:
            model = error.best
    return SimpleNamespace(report=reports[-1], model=model, notes=reports[-1].notes)


def kept(model):
    return json.loads(model.metadata["jaxq.kept"])


def on_disk(work):
    return kept(jaxq.load(work / "best.onnx"))


def stored(work):
    return json.loads((work / "state.json").read_text())


@pytest.fixture
def calls(monkeypatch):
    """The roles in which models were evaluated."""
    found = []
    evaluate = by_function.FunctionValidation.evaluate

    def watch(self, model, role=""):
        found.append(role or type(model).__name__)
        return evaluate(self, model, role)

    monkeypatch.setattr(by_function.FunctionValidation, "evaluate", watch)
    return found


# ----------------------------------------------------------------------------------------------- which search it is


def test_a_search_with_the_same_data_and_function_takes_every_value_from_the_state(tmp_path, calls):
    before = search(tmp_path)
    assert calls
    calls.clear()
    after = search(tmp_path)
    assert calls == []
    assert after.report.values == before.report.values
    assert after.report.runtime_values == before.report.runtime_values
    assert kept(after.model) == kept(before.model)


def relabelled():
    return [*labelled()[:6], *((feed, (label + 1) % 5) for feed, label in labelled()[6:])]


def bounded(limit):
    """The chain with a bound behind its first convolution."""
    proto = chain()
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("low", 0), ("high", limit))
    )
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.op_type = "Clip"
    relu.input.extend(["low", "high"])
    return proto


def brighter():
    return [*images(11), images(12)[11] + np.float32(1)]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"data": relabelled}, "validation data"),
        ({"data": lambda: list(labelled())[:6]}, "validation data"),
        ({"calibration": brighter}, "calibration data"),
        ({"function": lambda: lambda model, items: accuracy(model, items)[0]}, "validation function"),
        ({"model": lambda: bounded(0.1)}, "model"),
    ],
)
def test_values_of_other_data_functions_or_models_are_not_taken(tmp_path, changed, what):
    search(tmp_path, model=bounded(4.0))
    given = {"model": bounded(4.0), **{name: make() for name, make in changed.items()}}
    after = search(tmp_path, **given)
    assert f"another search (other {what})" in after.notes[0]
    assert not any(step.resumed for step in after.report.steps)
    assert after.report.values == search(None, **given).report.values


def test_a_search_that_goes_on_says_what_of_the_function_was_not_compared(tmp_path):
    def above(limit):
        return lambda model, items: min(accuracy(model, items)[0], limit)

    search(tmp_path, above(0.9))
    (note,) = search(tmp_path, above(0.8)).notes
    assert note.endswith("not compared: 'limit' in test_a_search_that_goes_on_says_what_of_the_function_was_not_compared."
                         "<locals>.above.<locals>.<lambda> (name another folder if that has changed)")  # fmt: skip


def estimator(part):
    """What the user may write in place of a range estimator: a part of what was seen."""
    return jaxq.AdvancedQuantizationParameters(
        activations_range_estimator_params=(lambda seen, grid, symmetric: (seen.low / 2, seen.high / 2))
        if part == 2
        else (lambda seen, grid, symmetric: (seen.low / 3, seen.high / 3))
    )


def test_a_range_estimator_of_the_users_own_is_known_by_its_code(tmp_path):
    search(tmp_path, quantization=estimator(2))
    assert "going on" in search(tmp_path, quantization=estimator(2)).notes[0]
    assert "other options" in search(tmp_path, quantization=estimator(3)).notes[0]


def test_a_metric_of_the_users_own_is_known_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def found(body):
        (tmp_path / "own_count.py").write_text(f"def count(outputs, targets):\n    {body}\n")
        monkeypatch.delitem(sys.modules, "own_count", raising=False)
        return search(tmp_path / "work", "own_count:count").notes

    assert found("return 1.0 * len(outputs)") == ()
    assert "finished" in found("# words\n    return 1.0 * len(outputs)")[0]
    assert "other validation function" in found("return 2.0 * len(outputs)")[0]


def test_data_are_passed_over_once_more_only_where_a_search_goes_on(tmp_path):
    passes = []

    class Loader:
        def __iter__(self):
            yield from labelled()
            passes.append(1)  # to the end: a look at the first item is none

    search(None, data=Loader())
    plain = len(passes)
    passes.clear()
    search(tmp_path, data=Loader())
    assert len(passes) == plain
    passes.clear()
    search(tmp_path, data=Loader())
    assert len(passes) == 1


def test_the_files_of_another_search_are_moved_aside_as_they_are(tmp_path):
    first = search(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    search(tmp_path, data=relabelled())
    aside = tmp_path / "earlier-1"
    assert {path.name for path in aside.iterdir()} == names
    assert on_disk(aside) == kept(first.model)
    again = search(aside)
    assert again.notes[0].startswith("going on with a search that was finished")
    search(tmp_path)
    assert (tmp_path / "earlier-2" / "best.onnx").is_file()


def test_files_of_the_user_with_such_names_are_moved_aside_and_what_else_is_there_stays(tmp_path):
    for name in ("best.onnx", "report.json", "notes.txt"):
        (tmp_path / name).write_text("precious")
    assert "holds report.json, best.onnx of something else; moved to" in search(tmp_path).notes[0]
    assert (tmp_path / "earlier-1" / "best.onnx").read_text() == "precious"
    store.remove(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1", "notes.txt"]


def test_a_damaged_state_is_said_to_be_damaged(tmp_path):
    search(tmp_path)
    for text in ("{ broken", '{"format": 2}', "[]", '{"format": 2, "identity": {"validation data": 3}}'):
        (tmp_path / "state.json").write_text(text)
        found = search(tmp_path)
        assert "is damaged" in found.notes[0]
        assert found.report.status == "reached"
    assert (tmp_path / "earlier-1" / "state.json").read_text() == "{ broken"


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_a_base_that_a_power_loss_left_damaged_is_made_anew(tmp_path, content):
    (tmp_path / "base-mixed.npz").write_bytes(content)
    assert store.Store(tmp_path).load_base("mixed") is None


def test_a_state_of_another_version_is_said_to_be_one(tmp_path):
    search(tmp_path)
    (tmp_path / "state.json").write_text('{"format": 1}')
    assert "other version of jaxq" in search(tmp_path).notes[0]


def interrupted(work, after, **options):
    """A search that is interrupted when so many candidates are known."""

    def interrupt(report):
        if report.status == "running" and len(report.steps) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        search(work, on_step=interrupt, **options)
    return caught.value


def test_what_is_said_of_an_earlier_search_is_true(tmp_path):
    interrupted(tmp_path, 2)
    assert search(tmp_path).notes[0].startswith("going on with a search that was broken off: 2 candidates")
    assert search(tmp_path).notes[0].startswith("going on with a search that was finished: 2 candidates")


def test_a_finished_search_that_is_broken_off_with_another_limit_is_broken_off(tmp_path):
    assert len(search(tmp_path, max_drop=0.5).report.steps) == 1  # one candidate is enough
    interrupted(tmp_path, 2, max_drop=0.0)
    assert search(tmp_path, max_drop=0.0).notes[0].startswith("going on with a search that was broken off")


def test_an_interrupted_search_leaves_its_best_though_it_was_known_before(tmp_path):
    search(tmp_path, max_drop=0.0)
    caught = interrupted(tmp_path, 1, max_drop=0.9)
    assert on_disk(tmp_path) == {}
    assert "best.onnx" in caught.__notes__[0]


# -------------------------------------------------------------------------------------------------------- what is kept


def test_rankings_of_another_restore_mode_are_not_taken_and_trials_are(tmp_path):
    def ranked(work, mode):
        search(work, max_drop=0.0, restore_mode=mode, max_num_iterations=1)
        return stored(work)["rankings"]

    search(tmp_path / "both", max_drop=0.0, max_num_iterations=1)
    both = ranked(tmp_path / "both", "only_activations")
    alone = ranked(tmp_path / "alone", "only_activations")
    assert len(both) > len(alone)
    assert alone.items() <= both.items()
    found = search(tmp_path / "both", max_drop=0.0, restore_mode="only_activations", max_num_iterations=1)
    assert found.report.steps[0].resumed


@pytest.mark.parametrize("other", [{"confirm": 0}, {"ranking_subset_size": 2}, {"ranking": "alone"}])
def test_a_ranking_made_in_another_way_is_made_anew_and_trials_are_taken(tmp_path, other):
    search(tmp_path, ranking="gradient")
    before = stored(tmp_path)["rankings"].keys()
    found = search(tmp_path, **({"ranking": "gradient"} | other))
    assert found.notes[0].startswith("going on with")
    assert stored(tmp_path)["rankings"].keys() > before
    assert found.report.steps[0].resumed


def test_with_another_limit_the_best_is_written_though_it_was_known_before(tmp_path):
    search(tmp_path, max_drop=0.0)
    assert BAD in on_disk(tmp_path)
    found = search(tmp_path, max_drop=0.9)
    assert found.report.steps[-1].resumed
    assert kept(found.model) == on_disk(tmp_path) == {}


def test_a_file_that_was_deleted_is_written_again(tmp_path):
    found = search(tmp_path)
    (tmp_path / "best.onnx").unlink()
    search(tmp_path)
    assert on_disk(tmp_path) == kept(found.model)


def test_when_the_runtime_refuses_the_best_the_next_is_on_disk(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    first = kept(search(None).model)

    def refuse(validation, model):
        return {"validation_fn": float(kept(model) != first)}

    monkeypatch.setattr(trials, "in_runtime", refuse)
    found = search(tmp_path)
    assert kept(found.model) != first
    assert on_disk(tmp_path) == kept(found.model)


def test_values_of_the_runtime_are_kept(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    measured = []
    real = trials.in_runtime
    monkeypatch.setattr(trials, "in_runtime", lambda *given: measured.append(1) or real(*given))
    before = search(tmp_path).report.runtime_values
    assert measured
    measured.clear()
    assert search(tmp_path).report.runtime_values == before
    assert not measured


# ----------------------------------------------------------------------------------------------------------- the folder


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxq.accuracy.front.prepare", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(ConfigError, match="cannot write"):
        search("/proc/self")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        search(tmp_path / "file")


@pytest.mark.parametrize("after", range(0, 12, 3))
def test_a_disk_that_is_full_costs_the_folder_and_not_the_search(tmp_path, monkeypatch, after):
    count = 0

    def full(write):
        def writing(*given):
            nonlocal count
            count += 1
            if count > after:
                raise OSError(28, "No space left on device")
            return write(*given)

        return writing

    expected = search(None)
    monkeypatch.setattr(store, "write_bytes", full(store.write_bytes))
    monkeypatch.setattr(trials, "write_text", full(trials.write_text))
    monkeypatch.setattr(store, "write_text", trials.write_text)
    found = search(tmp_path)
    (note,) = [each for each in found.notes if "No space left on device" in each]
    assert "the search goes on" in note
    assert count == after + 1  # it is not tried again
    assert found.report.status == "reached"
    assert kept(found.model) == kept(expected.model)


def test_a_model_that_does_not_fit_on_the_disk_costs_the_folder_only(tmp_path, monkeypatch):
    def full(model, path):
        raise ConfigError(f"cannot write {str(path)!r}: No space left on device")

    monkeypatch.setattr(store, "save", full)
    found = search(tmp_path)
    assert found.report.status == "reached"
    assert any("No space left on device" in each for each in found.notes)


def test_a_state_that_was_cut_short_names_no_other_model_as_the_best(tmp_path, monkeypatch):
    float_model = chain()

    def kept_best(place, model):
        memory = store.Store(tmp_path, SimpleNamespace(to_dict=dict, differences=lambda _: [], unseen=""))
        return lambda: memory.keep_best(place, lambda: model)

    def named(name):
        return jaxq.load(float_model).replace(metadata=FrozenDict({"name": name}))

    def action():
        kept_best("first", named("first"))()
        return kept_best("second", named("second"))

    found = []

    def check():
        found.append(stored(tmp_path)["best"])
        assert found[-1] in ("", jaxq.load(tmp_path / "best.onnx").metadata["name"])

    every_kill(monkeypatch, action, check)
    assert set(found) == {"first", "", "second"}


@pytest.mark.parametrize("number", [0, 1, 3, 5, 8, 13])
def test_a_search_that_is_killed_at_any_change_of_its_folder_goes_on_to_the_same_end(tmp_path, monkeypatch, number):
    expected = search(None)
    with pytest.raises(Killed), killed_at(number, monkeypatch):
        search(tmp_path)
    if (tmp_path / "state.json").exists() and (best := stored(tmp_path)["best"]):
        assert dict(json.loads(best)[1]) == on_disk(tmp_path)
    found = search(tmp_path)
    assert [(step.what, step.values) for step in found.report.steps] == [
        (step.what, step.values) for step in expected.report.steps
    ]
    assert kept(found.model) == kept(expected.model) == on_disk(tmp_path)


@pytest.mark.parametrize("external", [False, True])
def test_a_search_that_is_moved_aside_keeps_its_model_and_its_data_together(tmp_path, monkeypatch, external):
    model = jaxq.load(chain())

    def action():
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        (tmp_path / "work").mkdir()
        jaxq.save(model, tmp_path / "work" / "best.onnx", external_data=external)
        (tmp_path / "work" / "state.json").write_text("{}")
        (tmp_path / "work" / "best.onnx.0123456789abcdef.data").write_text("mine")
        return lambda: store.move_aside(tmp_path / "work")

    def check():
        (found,) = tmp_path.glob("work/**/best.onnx")
        assert jaxq.load(found).params.keys() == model.params.keys()
        assert (tmp_path / "work" / "best.onnx.0123456789abcdef.data").is_file()

    assert every_kill(monkeypatch, action, check) == 2 + external
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        "best.onnx.0123456789abcdef.data",
        "earlier-1",
    ]


def test_only_the_files_of_the_search_are_removed(tmp_path):
    search(tmp_path / "work")
    (tmp_path / "work" / "notes.txt").write_text("mine")
    store.remove(tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["notes.txt"]
    search(tmp_path / "other")
    store.remove(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_best_model_is_copied_with_weights_that_lie_beside_it(tmp_path):
    search(tmp_path)
    jaxq.save(jaxq.load(tmp_path / "best.onnx"), tmp_path / "best.onnx", external_data=True)
    assert len(store.files_in(tmp_path)) == 5
    assert store.copy_best(tmp_path, tmp_path / "out.onnx")
    for path in store.files_in(tmp_path):
        path.unlink()
    assert accuracy(jaxq.load(tmp_path / "out.onnx"), labelled())[0] > 0.8
    assert not store.copy_best(tmp_path, tmp_path / "out.onnx")
