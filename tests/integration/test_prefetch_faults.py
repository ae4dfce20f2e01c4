"""What the hub, the line and the disk may answer instead, each as one sentence; nothing that arrived is lost by it."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_commands import Said, Site
from hub_repositories import RECIPE, reviews, tiny_model
from hub_server import TOKEN, Hub, hub

from finelaunch.provision.locked import read_lock

pytestmark = [pytest.mark.integration, pytest.mark.distributed]  # a hub and several clients, minutes in all

PREFETCH = ("prefetch", "reviews.yaml", "--download-only")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Hub]:
    tiny_model(tmp_path / "model")
    reviews(tmp_path / "reviews")
    with hub() as content:
        content.push("models", "tiny/bert", tmp_path / "model")
        content.push("datasets", "tiny/reviews", tmp_path / "reviews")
        yield content


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "reviews.yaml").write_text(RECIPE)
    return Site(tmp_path / "site")


def sentences(said: Said, code: int) -> str:
    assert said.code == code, said.err
    assert "Traceback" not in said.err
    assert TOKEN not in said.err
    return said.err


def downloads(served: Hub) -> dict[str, int]:
    """Return how often each file was asked for."""
    found: dict[str, int] = {}
    for request, count in served.requests.items():
        if request.startswith("GET") and "/resolve/" in request:
            found[request.rsplit("/", 1)[1]] = found.get(request.rsplit("/", 1)[1], 0) + count
    return found


def test_gates_and_unknown_names_are_said_with_what_to_do(served: Hub, site: Site, tmp_path: Path) -> None:
    served.push("models", "tiny/gated", tmp_path / "model")
    served.push("datasets", "tiny/secret", tmp_path / "reviews")
    served.push("models", "tiny/empty", tmp_path / "reviews")
    served.repository("models", "tiny/gated").gate = "token"
    served.repository("datasets", "tiny/secret").gate = "terms"
    model, data = "model.name_or_path={}".format, "data.train.path=hub:{}".format
    without, unknown, revision, both, subset, split, empty = site.run(
        served,
        (*PREFETCH, model("tiny/gated")),
        (*PREFETCH, model("tiny/brt"), data("tiny/review")),
        (*PREFETCH, "model.revision=v9"),
        (*PREFETCH, model("tiny/brt"), "data.test.revision=v9"),
        (*PREFETCH, "data.train.subset=other"),
        (*PREFETCH, "data.train.split=dev"),
        (*PREFETCH, model("tiny/empty")),
    )
    said = sentences(without, 3)
    assert "model.name_or_path: the model tiny/gated is gated, and nobody is logged in" in said
    assert f"accept its terms at {served.endpoint}/tiny/gated" in said
    assert "hf auth login" in said
    said = sentences(unknown, 2)
    assert "command line: model.name_or_path: the hub has no model 'tiny/brt', or it is private" in said
    assert "command line: data.train.path: the hub has no data set 'tiny/review'" in said
    assert "model.revision: tiny/bert has no revision 'v9'; a branch, a tag or a commit hash" in sentences(revision, 2)
    assert len(sentences(both, 2).strip().splitlines()) == 2
    assert "subset" in sentences(subset, 2)
    assert "split" in sentences(split, 2)
    assert "holds neither model.safetensors nor pytorch_model.bin" in sentences(empty, 2)
    allowed, refused = site.run(
        served,
        (*PREFETCH, model("tiny/gated")),
        (*PREFETCH, data("tiny/secret")),
        HF_TOKEN=TOKEN,
    )
    assert allowed.code == 0, allowed.err
    said = sentences(refused, 3)
    assert "the data set tiny/secret is gated, and this account has no access" in said
    assert f"accept its terms at {served.endpoint}/datasets/tiny/secret" in said


def test_a_hub_out_of_reach_and_a_forbidden_one_are_said(site: Site) -> None:
    with hub() as gone:
        pass
    (unreachable,) = site.run(gone, PREFETCH)
    said = sentences(unreachable, 3)
    assert f"tiny/bert cannot be fetched from {gone.endpoint}" in said
    assert "is there a network here?" in said
    mirror = gone.endpoint.replace("//", "//student:hunter2@")
    (mirrored,) = site.run(gone, PREFETCH, HF_ENDPOINT=mirror)
    said = sentences(mirrored, 3)
    assert gone.endpoint in said
    assert "hunter2" not in said
    (offline,) = site.run(None, PREFETCH)
    assert "HF_HUB_OFFLINE is set and nothing was fetched yet" in sentences(offline, 3)


def test_a_broken_line_is_taken_up_where_it_broke_and_a_false_file_is_never_kept(
    served: Hub, site: Site, tmp_path: Path
) -> None:
    large = tmp_path / "model" / "original" / "large.model"
    large.parent.mkdir()
    large.write_bytes(os.urandom(21 << 20))
    served.push("models", "tiny/bert", tmp_path / "model")
    served.broken["original/large.model"] = [12 << 20]
    (broken,) = site.run(served, PREFETCH)
    assert broken.code == 0, broken.err
    assert served.ranges == [("original/large.model", f"bytes={10 << 20}-")]  # the client writes 10 MiB at a time
    (arrived,) = site.snapshots.rglob("large.model")
    assert arrived.read_bytes() == large.read_bytes()
    shutil.rmtree(site.folder / "hf")
    shutil.rmtree(site.cache)
    sizes = {name: (tmp_path / "model" / name).stat().st_size for name in ("model.safetensors", "config.json")}
    served.wrong = {name: b" " * size for name, size in sizes.items()}
    before = downloads(served)
    (false,) = site.run(served, PREFETCH)
    assert "arrived with another content than the hub has; the same command fetches it again" in sentences(false, 3)
    assert not list(site.cache.rglob("*.json"))
    served.wrong = {}
    second, third = site.run(served, PREFETCH, PREFETCH)
    # Each command names one false file; what was right is not fetched again.
    assert third.code == 0, second.err + third.err
    now = downloads(served)
    assert now["tokenizer.json"] - before["tokenizer.json"] == 1
    assert now["model.safetensors"] - before["model.safetensors"] == 2


def test_a_killed_download_leaves_nothing_that_is_taken_for_a_file(served: Hub, site: Site) -> None:
    served.stalled = {"model.safetensors"}
    process = site.start(served, PREFETCH)
    assert served.has_stalled.wait(120)
    process.kill()
    process.wait()
    process.stdout.close()  # type: ignore[union-attr]
    served.stalled = set()
    partial = list(site.snapshots.rglob("*.incomplete"))
    assert partial
    for path in partial:
        os.utime(path, (0, 0))
    before = downloads(served)
    (again,) = site.run(served, PREFETCH)
    assert again.code == 0, again.err
    assert not list(site.snapshots.rglob("*.incomplete"))
    assert downloads(served)["model.safetensors"] == before["model.safetensors"] + 1
    assert all(path.stat().st_size for path in site.snapshots.glob("*/snapshots/*/*"))


def test_two_at_once_fetch_the_same_files(served: Hub, site: Site, tmp_path: Path) -> None:
    processes = [
        site.start(served, ("prefetch", "reviews.yaml", "--json"), FINELAUNCH_SAID=str(site.folder / name))
        for name in ("first", "second")
    ]
    said = [site.end(process, name)[0] for process, name in zip(processes, ("first", "second"), strict=True)]
    assert [one.code for one in said] == [0, 0], said
    assert said[0].answer["prepared"] == said[1].answer["prepared"]
    lock = read_lock(Path(said[0].answer["lock"]))
    assert lock is not None
    assert not list(site.cache.rglob(".*-*"))
    (proven,) = site.run(None, ("train", "reviews.yaml", "--on", "cpu", "--run-dir", "run", "training.max_steps=1"))
    assert proven.code == 0, proven.err


@pytest.mark.parametrize(
    ("folder", "kibibytes", "said"),
    [
        ("hf", 32, r"hf/hub: [\d,]+ bytes are needed, and [\d,]+ are free; make room there"),
        ("cache", 4, r"site/cache: no space left"),
    ],
)
def test_a_disk_that_is_full_is_said_with_its_place(
    served: Hub, site: Site, folder: str, kibibytes: int, said: str
) -> None:
    (site.folder / folder).mkdir()
    mount = f'mount -t tmpfs -o size={kibibytes}k tmpfs {site.folder / folder} && exec "$0" "$@"'
    before = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount)
    (full,) = site.run(served, PREFETCH, before=before)
    assert re.search(said, sentences(full, 3)), full.err


def test_a_pickle_that_is_code_is_refused_and_its_code_never_runs(served: Hub, site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    tiny_model(folder)
    (folder / "model.safetensors").unlink()
    # A pickle that calls os.mkdir, as a file from before torch 1.6 would hold it.
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nmkdir\n(Vran\ntR.")
    served.push("models", "tiny/hostile", folder)
    (said,) = site.run(served, (*PREFETCH, "model.name_or_path=tiny/hostile"))
    assert "pytorch_model.bin: model.name_or_path: cannot be read as weights alone" in sentences(said, 2)
    assert not (site.folder / "ran").exists()
    assert not list(site.cache.rglob("*.json"))
    assert not list(site.snapshots.rglob("*.safetensors"))


def test_the_folders_of_a_cluster_are_filled_with_the_login_of_the_home(
    served: Hub, site: Site, tmp_path: Path
) -> None:
    served.repository("models", "tiny/bert").gate = "token"
    (site.folder / "hf").mkdir()
    (site.folder / "hf" / "token").write_text(TOKEN)
    (site.folder / "here.yaml").write_text(f"hf_home: {tmp_path}/shared\n")
    (said,) = site.run(served, (*PREFETCH, "--cluster", "here.yaml", "--json"))
    assert said.code == 0, said.err
    assert list((tmp_path / "shared" / "hub").rglob("model.safetensors"))
    assert not site.snapshots.exists()
    assert f"HF_HOME={tmp_path}/shared" in said.answer["tokenise_command"]
    holders = [path for path in (*tmp_path.rglob("*"),) if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert holders == [site.folder / "hf" / "token"]


def test_a_stop_ends_it_while_it_waits_for_the_hub(served: Hub, site: Site) -> None:
    served.stalled = {"model.safetensors"}
    process = site.start(served, PREFETCH)
    assert served.has_stalled.wait(120)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 75
    assert (site.folder / "said.err").read_text().endswith("\nstopped\n")
