"""A key changes with all that can change a node's result, and with nothing else."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks import code_hash, plan, settings
from tasks.errors import SettingsError
from tasks.plan import Inputs, Plan

ROOT = Path(plan.__file__).parents[1]
SHORT = {"structure.layer_drop": {"keep": 3}}
RECIPES: dict[str, Any] = {
    "int8": ["quantization.dynamic"],
    "small": [SHORT, {"distillation.logits": {"teacher": "baseline"}}],
    "small-int8": [
        SHORT,
        {"distillation.logits": {"teacher": "baseline"}},
        "quantization.dynamic",
    ],
    "taught": [{"pruning.structured": {"teacher": "small"}}],
    "alone": [{"pruning.structured": {"heads": 0.4}}],
}
INPUTS = Inputs(data_md5="d" * 32, base_model_sha256="b" * 64, device="cpu")


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A settings file of three recipes of which one teaches another."""
    path = tmp_path / "params.yaml"
    document = {
        "name": "reviews",
        "source": {"address": "reviews.csv", "label": "stars"},
        "baseline": {"model": "./model"},
        "recipes": RECIPES,
    }
    path.write_text(json.dumps(document))
    return path


def planned(params: Path, *overrides: str, inputs: Inputs = INPUTS) -> Plan:
    return plan.make(settings.load(params, overrides=overrides), inputs)


def changed(before: Plan, after: Plan) -> set[str]:
    """The recipes whose last node has another key, and `baseline`."""
    names = {name for name in before.leaves if before.leaves[name] != after.leaves[name]}
    return names | ({"baseline"} if before.baseline != after.baseline else set())


ALL = {"baseline", *RECIPES}


def test_equal_beginnings_are_one_node(params: Path) -> None:
    made = planned(params)
    small, int8 = made.recipes["small"], made.recipes["small-int8"]
    assert int8[: len(small)] == small
    assert len(made.nodes) == 1 + 1 + 2 + 1 + 1 + 1
    assert next(iter(made.nodes)) == made.baseline
    for place, node in enumerate(made.nodes.values()):  # what is needed comes before
        assert set(node.needs) <= set(list(made.nodes)[:place])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=14", ALL),
        ("baseline.max_length=64", ALL),
        ("baseline.training.epochs=2", ALL),
        ("recipes.int8=[{quantization.dynamic: {per_channel: false}}]", {"int8"}),
        (
            'recipes.small=[{structure.layer_drop: {keep: 2}}, "distillation.logits"]',
            {"small", "taught"},
        ),
        ("recipes.taught=[{pruning.structured: {teacher: baseline}}]", {"taught"}),
        ("recipes.taught=[{pruning.structured: {heads: 0.6, teacher: small}}]", {"taught"}),
    ],
)
def test_what_can_change_a_result_changes_its_key_and_those_below(
    params: Path, override: str, expected: set[str]
) -> None:
    assert changed(planned(params), planned(params, override)) == expected


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs("e" * 32, INPUTS.base_model_sha256, "cpu"),
        Inputs(INPUTS.data_md5, "c" * 64, "cpu"),
    ],
)
def test_other_data_and_another_base_model_change_all_keys(params: Path, inputs: Inputs) -> None:
    assert changed(planned(params), planned(params, inputs=inputs)) == ALL


@pytest.mark.parametrize(("strategy", "data"), [("importance", INPUTS.data_md5), ("even", None)])
def test_a_step_is_keyed_by_the_data_where_its_settings_let_it_read_them(
    params: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, data: str | None
) -> None:
    # below a baseline that is keyed by the data too, only what is hashed tells one from the other
    hashed: dict[str, Any] = {}
    real = plan.files.key
    monkeypatch.setattr(
        plan.files, "key", lambda facts: hashed.update({facts["technique"]: facts}) or real(facts)
    )
    planned(params, f"recipes.drop=[{{structure.layer_drop: {{keep: 2, strategy: {strategy}}}}}]")
    assert hashed["structure.layer_drop"]["data"] == data
    assert (hashed["structure.layer_drop"]["seed"] is None) == (data is None)


def test_another_version_changes_all_keys(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(params)
    monkeypatch.setattr(plan, "COMPUTING_PACKAGES", plan.COMPUTING_PACKAGES[1:])
    assert changed(before, planned(params)) == ALL


@pytest.mark.parametrize(
    "override",
    [
        "training.checkpoint_seconds=5",
        "baseline.training.checkpoint_seconds=5",
        "training.gradient_checkpointing=true",
        "recipes.taught=[{pruning.structured: {teacher: small, training: "
        "{checkpoint_seconds: 5}}}]",
        "name=other",
        "threads=1",
        "workers=2",
        "time_limit_minutes=5",
        "baseline.model=./the-same-elsewhere",
        "gates.min_accuracy=0.5",
    ],
)
def test_what_cannot_change_a_result_changes_no_key(params: Path, override: str) -> None:
    assert changed(planned(params), planned(params, override)) == set()


def test_names_and_order_of_recipes_and_comments_change_no_key(params: Path) -> None:
    before = planned(params)
    text = params.read_text().replace('"small"', '"shorter"').replace('"alone"', '"by-itself"')
    document = json.loads(text)
    document["recipes"] = dict(reversed(document["recipes"].items()))
    params.write_text(f"# a comment\n{json.dumps(document, indent=1)}\n")
    after = planned(params)
    assert before.nodes.keys() == after.nodes.keys()
    assert after.leaves["shorter"] == before.leaves["small"]
    assert after.leaves["taught"] == before.leaves["taught"]


def test_a_baseline_that_is_not_trained_is_keyed_without_training(params: Path) -> None:
    before = planned(params, "baseline.train=false")
    after = planned(params, "baseline.train=false", "training.epochs=7")
    assert changed(before, after) == {"small", "small-int8", "taught", "alone"}
    assert changed(planned(params), before) == ALL


def test_a_node_holds_all_that_it_is_pressed_from(params: Path) -> None:
    for node in planned(params, "training.checkpoint_seconds=5").nodes.values():
        if "training" in node.settings:
            assert node.settings["training"]["checkpoint_seconds"] == 5
        assert set(node.teachers) == {node.settings.get("teacher")} - {None}
        assert node.code == plan.node_code(node.technique, taught=bool(node.teachers))


def edited(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch, line: str = "EDITED = 1"
) -> None:
    """Let keys be of a copy of this project's code in which one file has a line more."""
    shutil.copytree(ROOT / "tasks", root / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    with (root / "tasks" / name).open("a") as file:
        file.write(f"\n{line}\n")
    monkeypatch.setattr(plan, "code_hash", partial(code_hash.code_hash, root=root))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quantization/dynamic.py", {"int8", "small-int8"}),
        ("structure/layer_drop.py", {"small", "small-int8", "taught"}),
        ("distillation/logits.py", {"small", "small-int8", "taught"}),
        ("pruning/structured.py", {"taught", "alone"}),
        ("pruning/magnitude.py", set()),
        ("training/teacher.py", {"small", "small-int8", "taught"}),
        ("training/loop.py", ALL),
        ("context.py", ALL),
        ("registry/store.py", set()),
    ],
)
def test_a_change_of_code_costs_what_ran_it_and_those_below(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: set[str]
) -> None:
    before = planned(params)
    edited(tmp_path / "code", name, monkeypatch)
    assert changed(before, planned(params)) == expected


def test_a_comment_in_the_code_costs_nothing(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned(params)
    edited(tmp_path / "code", "pruning/structured.py", monkeypatch, line="# a comment")
    assert changed(before, planned(params)) == set()


def test_an_edit_after_the_check_changes_no_key_of_this_process(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "code"
    edited(root, "pruning/structured.py", monkeypatch, line="")
    plan.check(settings.load(params))
    before = planned(params), plan.code_hash("tasks.runtime.export")
    for path in ("pruning/structured.py", "runtime/export.py"):
        with (root / "tasks" / path).open("a") as file:
            file.write("\nEDITED = 1\n")
    assert (planned(params), plan.code_hash("tasks.runtime.export")) == before


def _of_many(params: Path, **settings: Any) -> Plan:
    """A plan of one more recipe, whose student learns from several teachers."""
    step = json.dumps({"distillation.ensemble": settings})
    return planned(params, f"recipes.many=[{step}]")


def test_several_teachers_are_pressed_before_and_count_by_what_they_are(params: Path) -> None:
    made = _of_many(params, teachers=["baseline", "small"], weights=[1, 2])
    node = made.nodes[made.leaves["many"]]
    assert node.teachers == {"baseline": made.baseline, "small": made.leaves["small"]}
    assert set(node.needs) == {made.baseline, made.leaves["small"]}
    key = made.leaves["many"]
    twin = planned(
        params,
        f"recipes.twin={json.dumps(RECIPES['small'])}",
        "recipes.many=[{distillation.ensemble: {teachers: [baseline, twin], weights: [1, 2]}}]",
    )
    assert twin.leaves["many"] == key
    for teachers, weights in (
        (["small", "baseline"], [1, 2]),
        (["baseline", "small"], [2, 1]),
        (["baseline", "alone"], [1, 2]),
    ):
        assert _of_many(params, teachers=teachers, weights=weights).leaves["many"] != key


def test_one_recipe_brings_all_its_teachers(params: Path) -> None:
    override = "recipes.many=[{distillation.ensemble: {teachers: [alone, small]}}]"
    kept = settings.load(params, overrides=[override], only=["many"]).recipes
    assert set(kept) == {"many", "alone", "small"}


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        (
            {"a": [{"distillation.ensemble": {"teachers": ["baseline", "smal"]}}],
             "small": [SHORT]},
            "recipes.a[0] distillation.ensemble: no recipe `smal` to learn from; did you mean "
            "`small`?",
        ),
        (
            {"a": [{"distillation.ensemble": {"teachers": ["baseline", "a"]}}]},
            "recipes teach each other in a circle: a → a",
        ),
        (
            {"a": [{"distillation.logits": {"teacher": "b"}}],
             "b": [{"distillation.logits": {"teacher": "a"}}]},
            "recipes teach each other in a circle: a → b → a",
        ),
        (
            {"a": [{"distillation.logits": {"teacher": "smal"}}], "small": [SHORT]},
            "recipes.a[0] distillation.logits: no recipe `smal` to learn from; did you mean "
            "`small`?",
        ),
        (
            {"a": ["structure.weight_sharing", {"pruning.structured": {"heads": 0.5}}]},
            "recipes.a[1] pruning.structured: it cannot follow `structure.weight_sharing`, which "
            "leaves shared matrices: put it before that step, or leave one of them out",
        ),
        (
            {"a": [{"pruning.magnitude": {"sparsity": 0.5}}, "quantization.binary"]},
            "recipes.a[1] quantization.binary: it cannot follow `pruning.magnitude`, which leaves "
            "pruned weights: leave one of them out",
        ),
        (
            {"a": [{"structure.factorized_embedding": {"rank": 8}},
                   {"pruning.structured": {"hidden": 0.5}}]},
            "recipes.a[1] pruning.structured: it cannot follow `structure.factorized_embedding`, "
            "which leaves factorized embeddings: put it before that step, or leave one of them out",
        ),
        (
            {"a": ["structure.weight_sharing"] * 2},
            "recipes.a[1] structure.weight_sharing: it cannot follow `structure.weight_sharing`, "
            "which leaves shared matrices: leave one of them out",
        ),
        (
            {"a": ["quantization.binary", "distillation.logits"]},
            "recipes.a[1] distillation.logits: nothing can follow `quantization.binary`, the last "
            "step there is: put it before that step, or leave one of them out",
        ),
        (
            {"a": ["quantization.dynamic", {"quantization.static": {}}]},
            "recipes.a[1] quantization.static: nothing can follow `quantization.dynamic`, the "
            "last step there is: leave one of them out",
        ),
        (
            {"a": ["quantization.binary", {"pruning.magnitude": {"sparsity": 0.5}}]},
            "recipes.a[1] pruning.magnitude: nothing can follow `quantization.binary`, the last "
            "step there is: leave one of them out",
        ),
        (
            {"a": ["structure.vocabulary", "structure.vocabulary"]},
            "recipes.a[1] structure.vocabulary: it cannot follow `structure.vocabulary`, which "
            "leaves a cut vocabulary: leave one of them out",
        ),
        (
            {"a": [{"pruning.magnitude": {"sparsity": 0.5, "embeddings": True}},
                   {"structure.factorized_embedding": {"rank": 8}}]},
            "recipes.a[1] structure.factorized_embedding: it cannot follow `pruning.magnitude`, "
            "which leaves pruned embeddings: put it before that step, or leave one of them out",
        ),
        (
            {"a": [{"distillation.logits": {"student": {"lstm": {}}}}, SHORT]},
            "recipes.a[1] structure.layer_drop: it cannot follow `distillation.logits`, which "
            "leaves recurrent layers: put it before that step, or leave one of them out",
        ),
        (
            {"a": [{"distillation.logits": {"student": {"lstm": {}}}}, "quantization.static"]},
            "recipes.a[1] quantization.static: it cannot follow `distillation.logits`, which "
            "leaves recurrent layers: leave one of them out",
        ),
        (
            {"a": [{"distillation.logits":
                    {"teacher": "b", "student": {"ffn": 8, "init": "first"}}}],
             "b": ["structure.weight_sharing"]},
            "recipes.a[0] distillation.logits: it cannot be cut from its teacher `b`, which has "
            "shared matrices from `recipes.b[0] structure.weight_sharing`: name another teacher",
        ),
        (
            {"a": [{"distillation.hidden_states": {"teacher": "b"}}],
             "b": ["quantization.binary"]},
            "recipes.a[0] distillation.hidden_states: it cannot learn from its teacher `b`, which "
            "has packed matrices from `recipes.b[0] quantization.binary`: name another teacher",
        ),
        (
            {"a": [{"distillation.hidden_states": {"teacher": "b"}}],
             "b": ["structure.sequence_length"]},
            "recipes.a[0] distillation.hidden_states: it cannot learn from its teacher `b`, which "
            "has shortened texts from `recipes.b[0] structure.sequence_length`: name another "
            "teacher",
        ),
        (
            {"a": ["structure.vocabulary", "distillation.hidden_states"]},
            "recipes.a[1] distillation.hidden_states: the model has a cut vocabulary from "
            "`recipes.a[0] structure.vocabulary` and its teacher `baseline` has not, and they are "
            "compared token by token: name a teacher that agrees, or leave one of the steps out",
        ),
        (
            {"a": [{"joint.compression": {"teacher": "b", "hidden": 1}}],
             "b": ["structure.vocabulary"]},
            "recipes.a[0] joint.compression: its teacher `b` has a cut vocabulary from "
            "`recipes.b[0] structure.vocabulary` and the model has not, and they are "
            "compared token by token: name a teacher that agrees, or leave one of the steps out",
        ),
        (
            {"a": ["quantization.dynamic", SHORT]},
            "recipes.a[1] structure.layer_drop: nothing can follow `quantization.dynamic`, the "
            "last step there is: put it before that step, or leave one of them out",
        ),
        (
            {"a": [SHORT, "quantization.dynamc"]},
            "recipes.a[1] quantization.dynamc: unknown technique `quantization.dynamc`; did you "
            "mean `quantization.dynamic`?",
        ),
        (
            {"a": [{"structure.layer_drop": {"keep": 0}}]},
            "recipes.a[0] structure.layer_drop: `keep`: Input should be greater than or equal to "
            "1 (it is 0)",
        ),
        (
            {"a": [{"pruning.structured": {"training": {"epoch": 2}}}]},
            "recipes.a[0] pruning.structured: unknown setting `training.epoch`; did you mean "
            "`epochs`?",
        ),
        (
            {"a": [{"distillation.logits": {"teacher": ["b"]}}]},
            "recipes.a[0] distillation.logits: `teacher`: Input should be a valid string",
        ),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_are_refused_before_any_data(
    params: Path, recipes: dict[str, Any], expected: str
) -> None:
    document = json.loads(params.read_text())
    params.write_text(json.dumps({**document, "recipes": recipes}))
    with pytest.raises(SettingsError) as caught:
        plan.check(settings.load(params))
    assert str(caught.value) == expected


def _chain(params: Path, steps: list[Any]) -> tuple[str, ...]:
    document = json.loads(params.read_text())
    params.write_text(json.dumps({**document, "recipes": {"a": steps}}))
    return planned(params).recipes["a"]


def test_what_a_student_replaces_is_no_longer_in_the_way(params: Path) -> None:
    taught = {"distillation.logits": {"student": {"layers": 2}}}
    steps: list[Any] = ["structure.weight_sharing", taught, {"pruning.structured": {"heads": 0.5}}]
    assert len(_chain(params, steps)) == 4


def test_a_baseline_of_recurrent_layers_is_known_beforehand(params: Path) -> None:
    words = (
        r"recipes.small\[0\] structure.layer_drop: the baseline has recurrent layers, which it "
        "cannot treat: leave the step out"
    )
    with pytest.raises(SettingsError, match=words):
        planned(params, "baseline.lstm={}")


LAYERS = {"layers": 2, "init": "first"}


@pytest.mark.parametrize(
    "steps",
    [
        # the tokens of texts of other domains can go too
        ["structure.vocabulary", {"structure.vocabulary": {"transfer": False}}],
        # both read the same tokens
        ["structure.vocabulary", {"distillation.hidden_states": {"teacher": "few"}}],
        ["structure.vocabulary", "joint.compression"],
        # a teacher may read less where the student does too
        [
            {"structure.sequence_length": {"share": 0.9}},
            {"distillation.hidden_states": {"teacher": "brief"}},
        ],
        # whole layers may be left out of whatever a teacher is
        [{"distillation.logits": {"teacher": "tied", "student": LAYERS}}, "quantization.static"],
        # a fresh model is rid of all but its texts
        [
            {"structure.factorized_embedding": {"rank": 8}},
            {"distillation.logits": {"student": {"layers": 2}}},
            {"structure.factorized_embedding": {"rank": 8}},
        ],
        # a cut of the teacher is not what stood before
        [
            {"distillation.logits": {"student": {"lstm": {}}}},
            {"distillation.logits": {"student": LAYERS}},
            {"pruning.structured": {"heads": 0.5}},
        ],
        [{"distillation.logits": {"teacher": "int8", "student": LAYERS}}, "quantization.dynamic"],
        [{"structure.factorized_embedding": {"rank": 8}}, "pruning.one_shot"],
    ],
)
def test_what_can_follow_is_let_through(params: Path, steps: list[Any]) -> None:
    document = json.loads(params.read_text())
    others = {
        "few": ["structure.vocabulary"],
        "brief": [{"structure.sequence_length": {"share": 0.9}}],
        "tied": ["structure.weight_sharing"],
        "int8": ["quantization.static"],
    }
    params.write_text(json.dumps({**document, "recipes": {"a": steps, **others}}))
    assert len(planned(params).recipes["a"]) == 1 + len(steps)


@pytest.mark.parametrize(
    ("first", "then", "what"),
    [
        (
            {"distillation.logits": {"student": {"lstm": {}}}},
            {"distillation.logits": {"student": {"hidden": 8}}},
            {"structure.layer_drop": {"keep": 1}},
        ),
        (
            "structure.vocabulary",
            {"distillation.logits": {"student": {"layers": 2}}},
            "structure.vocabulary",
        ),
    ],
)
def test_what_a_fresh_model_has_of_the_one_before_is_not_forgotten(
    params: Path, first: Any, then: Any, what: Any
) -> None:
    with pytest.raises(SettingsError, match=r"recipes.a\[2\] structure.*it cannot follow"):
        _chain(params, [first, then, what])


def test_narrow_settings_are_in_no_ones_way(params: Path) -> None:
    factorized = {"structure.factorized_embedding": {"rank": 8}}
    steps: list[Any] = [factorized, {"pruning.structured": {"heads": 0.5}}]
    assert len(_chain(params, steps)) == 3
    grouped = {"pruning.regularized": {"strength": 1, "penalty": "group"}}
    assert len(_chain(params, [grouped, "quantization.binary"])) == 3
