"""People promote, approve, reject and roll back by the real commands, on a real registry."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import workspaces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(night: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(night, tmp_path_factory.mktemp("promotion") / "copy"))


def does(root: Path, *arguments: str) -> dict[str, Any]:
    done = workspaces.nightpress(root, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def refuses(root: Path, *arguments: str) -> str:
    done = workspaces.nightpress(root, *arguments)
    assert done.returncode == 10, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def moves(root: Path) -> list[dict[str, Any]]:
    done = workspaces.nightpress(root, "history", "--json")
    assert done.returncode == 0, done.stderr
    return [entry for entry in json.loads(done.stdout) if entry["kind"] == "intent"]


def test_the_first_champion_is_in_the_ledger_with_its_evidence(root: Path) -> None:
    (first,) = moves(root)
    assert (first["action"], first["after"], first["policy"]) == ("promote", 1, "approve")
    assert "the first model that passed" in first["reason"]
    (path,) = (root / ".nightpress" / "tiny-reviews" / "evidence").glob("*.json")
    assert path.stem == first["evidence"]
    shown = json.loads(path.read_text())
    assert shown["candidate"]["node"] == first["node"]
    assert shown["succession"] is None
    assert all(gate["passed"] for gate in shown["gates"])
    done = workspaces.nightpress(root, "history")
    assert "champion of tiny-reviews: version 1; the chain of 2 entries is whole" in done.stdout


def test_a_candidate_is_weighed_promoted_and_taken_back(root: Path) -> None:
    champion = moves(root)[-1]["candidate"]
    other = next(number for number in (1, 2, 3, 4) if number != champion)
    told = does(root, "promote", str(other), "--override", "--reason", "a <b>try\u202e</b>\x1b[31m")
    assert (told["champion"], told["before"]) == (2, 1)
    evidence = root / ".nightpress" / "tiny-reviews" / "evidence" / f"{told['evidence']}.json"
    shown = json.loads(evidence.read_text())
    assert shown["succession"]["champion"]["node"] == moves(root)[0]["node"]
    assert {"champion loss", "champion loss bound", "improvement"} <= {
        gate["name"] for gate in shown["gates"]
    }
    assert f"version {other} of tiny-reviews-candidates is the champion already" in refuses(
        root, "promote", str(other), "--reason", "again"
    )
    back = does(root, "rollback", "--reason", "users complain")
    assert (back["champion"], back["before"]) == (1, 2)
    assert "nothing to go back to" in refuses(root, "rollback", "--reason", "further")
    assert does(root, "rollback", "--to", "2", "--reason", "after all")["champion"] == 2
    done = workspaces.nightpress(root, "history")
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "rollback: 2 → 1" in done.stdout


def test_evidence_lapses_with_the_champion(root: Path) -> None:
    before = moves(root)
    said = refuses(root, "approve", str(before[0]["candidate"]), "--reason", "fine")
    assert "beside another champion than the one that stands now" in said
    assert moves(root) == before


def test_a_rejected_candidate_is_written_down(root: Path) -> None:
    told = does(root, "reject", "2", "--reason", "gets negations wrong")
    assert told["rejected"] == 2
    done = workspaces.nightpress(root, "history")
    assert "rejected: candidate 2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("promote", "99"), 8, "`tiny-reviews-candidates` has no `99`; it has version"),
        (("promote", "@chalenger"), 8, "has no `chalenger`"),
        (("promote", "1", "--override"), 2, "say why with `--reason`"),
        (("rollback", "--to", "77"), 8, "`tiny-reviews` has no `77`"),
        (("approve",), 10, "no challenger of tiny-reviews waits"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(
    root: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    before = moves(root)
    done = workspaces.nightpress(root, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert reason in done.stderr.splitlines()[-1]
    assert moves(root) == before


def test_a_ledger_changed_behind_our_back_is_named(root: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(root, tmp_path / "copy"))
    path = other / ".nightpress" / "tiny-reviews" / "ledger.jsonl"
    path.write_text(path.read_text().replace("users complain", "users rejoice"))
    done = workspaces.nightpress(other, "history")
    assert done.returncode == 6
    assert "is not entry" in done.stderr


def test_doctor_finds_an_alias_that_was_moved_by_other_means(root: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{root}/mlflow/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def champion() -> str:
        return str(client.get_model_version_by_alias("tiny-reviews", "champion").version)

    for option, expected in (("--restore", "2"), ("--adopt", "1")):
        client.set_registered_model_alias("tiny-reviews", "champion", "1")
        done = workspaces.nightpress(root, "doctor")
        assert done.returncode == 1
        said = " ".join(done.stdout.split())
        assert "points at version 1, and the ledger says version 2" in said
        assert "moved by other means" in refuses(root, "rollback", "--reason", "so")
        done = workspaces.nightpress(root, "doctor", option, "--reason", "seen")
        assert f"version {expected} of tiny-reviews now" in done.stdout, done.stdout
        assert champion() == expected
    assert [move["action"] for move in moves(root)[-2:]] == ["restore", "adopt"]
