"""What a user relies on: params.yaml is checked whole, and an error names place and cure."""

from pathlib import Path

import pytest

from tasks import settings
from tasks.errors import SettingsError

GOOD = """\
name: reviews
source:
  address: reviews.csv
  text: body
  label: stars
baseline:
  model: ./model
  training: {epochs: 2}
training:
  learning_rate: 3e-4
recipes:
  int8:
    - quantization.dynamic
  small:
    - structure.layer_drop: {keep: 3}
    - distillation.logits: {teacher: baseline}
  taught:
    - distillation.logits: {teacher: small}
profiles:
  quick:
    training: {epochs: 0.5}
    recipes: {small: null}
"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD)
    return path


def test_reads_defaults_and_inherits_training(params: Path) -> None:
    loaded = settings.load(params)
    assert loaded.baseline.training.epochs == 2
    assert loaded.baseline.training.learning_rate == 3e-4
    assert loaded.training.epochs == 1.0
    assert [s.technique for s in loaded.recipes["small"]] == [
        "structure.layer_drop",
        "distillation.logits",
    ]
    assert loaded.recipes["small"][0].settings == {"keep": 3}


def test_profile_overrides_and_removes(params: Path) -> None:
    loaded = settings.load(params, profile="quick")
    assert loaded.training.epochs == 0.5
    assert "small" not in loaded.recipes


def test_command_line_overrides_last(params: Path) -> None:
    loaded = settings.load(params, profile="quick", overrides=["training.epochs=7", "seed=5"])
    assert loaded.training.epochs == 7
    assert loaded.seed == 5


def test_only_keeps_a_recipes_teachers(params: Path) -> None:
    loaded = settings.load(params, only=["taught"])
    assert set(loaded.recipes) == {"small", "taught"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  text: body", "  txt: body", ":4: unknown setting `source.txt`; did you mean `text`?"),
        ("{epochs: 2}", "{epochs: -2}", "baseline.training.epochs`: Input should be greater"),
        ("{epochs: 2}", "{epochs: lots}", "valid number"),
        ("{epochs: 2}", "{epoch: 2}", ":8: unknown setting `baseline.training.epoch`; did you"),
        ("name: reviews", "name: ../../etc", ":1: `name`: only letters, digits"),
        ("  int8:", "  ../../int8:", "only letters, digits"),
        ("  int8:", "  baseline:", "the baseline's own name"),
        ("name: reviews\n", "", "setting `name` is missing"),
        ("  label: stars", "", "name the column of labels"),
        ("{epochs: 2}", "{epochs: 2", "not valid YAML"),
        ("name: reviews", "name: reviews\nname: again", "duplicate key"),
        ("name: reviews", "name: 2020-13-45", "not valid YAML: month must be in 1..12"),
        ("name: reviews", "name: x\nworkers: 0", ":2: `workers`: Input should be greater than or"),
        ("3e-4", "lots", ":10: `training.learning_rate`: Input should be a valid number"),
        ("{epochs: 0.5}", "{epochs: lots}", ":21: with profile `quick`: `training.epochs`: Input"),
        ("{epochs: 0.5}", "{epoch: 1}", "with profile `quick`: unknown setting `training.epoch`"),
        ("    training: {epochs: 0.5}", "    source: null", "quick`: setting `source` is missing"),
        ("  quick:", "  slow: 3\n  quick:", ":19: `profiles` must hold names with settings"),
        ("    - quantization.dynamic", "    []", ":11: `recipes`: recipe `int8` has no steps"),
    ],
)
def test_one_line_with_place_and_cure(params: Path, old: str, new: str, expected: str) -> None:
    params.write_text(GOOD.replace(old, new))
    with pytest.raises(SettingsError) as caught:
        settings.load(params)
    assert expected in str(caught.value)
    assert str(params) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "more)" not in str(caught.value)


def test_an_empty_profile_changes_nothing(params: Path) -> None:
    params.write_text(GOOD[: GOOD.index("    training: {epochs: 0.5}")])
    assert settings.load(params, profile="quick") == settings.load(params)


def test_what_is_told_twice_is_placed_where_it_was_said_last(params: Path) -> None:
    params.write_text(GOOD.replace("{epochs: 0.5}", "{epochs: lots}") + "seed: 5\n")
    for profile, override, expected in [
        (None, "seed=x", "-S seed=x: `seed`: "),
        ("quick", "seed=7", f"{params}:21: with profile `quick`: `training.epochs`: "),
        ("quick", "training.epochs=none", "-S training.epochs=none: `training.epochs`: "),
    ]:
        with pytest.raises(SettingsError) as caught:
            settings.load(params, profile=profile, overrides=[override])
        assert str(caught.value).startswith(expected)


def test_only_leaves_a_teacher_that_is_no_name_to_the_plan(params: Path) -> None:
    params.write_text(GOOD.replace("{teacher: small}", "{teacher: [small]}"))
    assert set(settings.load(params, only=["taught"]).recipes) == {"taught"}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"profile": "quik"}, "no profile `quik`; did you mean `quick`?"),
        ({"overrides": ["training.epochs"]}, "write it as `name.of.setting=value`"),
        ({"overrides": ["training.epocs=2"]}, "did you mean `epochs`?"),
        ({"overrides": ["name=2020-13-45"]}, "the value is not valid YAML"),
        ({"only": ["int9"]}, "no recipe `int9`; did you mean `int8`?"),
    ],
)
def test_wrong_choice_names_the_nearest(
    params: Path, call: dict[str, object], expected: str
) -> None:
    with pytest.raises(SettingsError, match=r".") as caught:
        settings.load(params, **call)  # type: ignore[arg-type]
    assert expected in str(caught.value)


def test_missing_file_names_init(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nightpress init"):
        settings.load(tmp_path / "none.yaml")


def test_tonight_are_the_recipes_named_and_their_teachers_unless_all_are_asked_for(
    params: Path,
) -> None:
    params.write_text(GOOD + "tonight: [taught]\n")
    assert list(settings.load(params).recipes) == ["small", "taught"]
    assert list(settings.load(params, only=["int8"]).recipes) == ["int8"]
    assert list(settings.load(params, only=["all"]).recipes) == ["int8", "small", "taught"]


def test_what_was_chosen_is_whole_settings_again(params: Path) -> None:
    params.write_text(GOOD + "tonight: [taught]\n")
    for only in (None, ["small"], ["all"]):
        chosen = settings.load(params, only=only)
        again = settings.Settings.model_validate(chosen.model_dump(mode="json"))
        assert again.recipes == chosen.recipes


def test_tonight_must_name_recipes(params: Path) -> None:
    params.write_text(GOOD.replace("profiles:", "tonight: [smal]\nprofiles:"))
    with pytest.raises(SettingsError, match="`tonight`: no recipe `smal`; did you mean `small`"):
        settings.load(params)
