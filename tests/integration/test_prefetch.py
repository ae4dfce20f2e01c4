"""From a hub to a run without a network: fetched once, pinned, tokenised, proven, trained with all sockets closed."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_commands import Site
from hub_repositories import RECIPE, reviews, tiny_model
from hub_server import TOKEN, Hub, hub
from safetensors.torch import load_file

from finelaunch.provision.locked import find_lock, read_lock
from finelaunch.provision.resolve import Resolved, resolve_offline
from finelaunch.provision.staging import stage
from finelaunch.recipe.load import load_recipe, read_overrides

pytestmark = pytest.mark.integration

TRAIN = ("train", "reviews.yaml", "--on", "cpu", "--run-dir", "run")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of repositories: a model in safetensors, the same pickled, pickled in two parts, and data."""
    folder = tmp_path_factory.mktemp("repositories")
    tiny_model(folder / "plain")
    tiny_model(folder / "pickled", pickled=True)
    tiny_model(folder / "parts", pickled=True, num_shards=2)
    for name in ("plain", "pickled", "parts"):
        # As llama has it: it fits the patterns of tokenizer files, so that the client wants it offline.
        (folder / name / "original").mkdir()
        (folder / name / "original" / "tokenizer.model").write_text("not read")
        (folder / name / "onnx").mkdir()
        (folder / name / "onnx" / "model.onnx").write_bytes(bytes(5000))
    reviews(folder / "reviews")
    return folder


@pytest.fixture(scope="module")
def served(repositories: Path) -> Iterator[Hub]:
    with hub() as content:
        content.push("models", "tiny/bert", repositories / "plain")
        content.push("models", "tiny/pickled", repositories / "pickled")
        content.push("models", "tiny/parts", repositories / "parts")
        content.push("datasets", "tiny/reviews", repositories / "reviews")
        yield content


def site_at(folder: Path) -> Site:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reviews.yaml").write_text(RECIPE)
    return Site(folder)


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def fetched(served: Hub, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a site where the recipe was fetched with a token, before branches moved."""
    site = site_at(tmp_path_factory.mktemp("fetched"))
    said = site.run(served, ("prefetch", "reviews.yaml", "--lock", "copy.json", "--json"), HF_TOKEN=TOKEN)
    assert said[0].code == 0, said[0].err
    (site.folder / "answer.json").write_text(said[0].out)
    return site


def copy_of(site: Site, folder: Path) -> Site:
    shutil.copytree(site.folder, folder / "site", symlinks=True)
    return Site(folder / "site")


def test_what_was_fetched_is_trained_without_a_network_at_the_commits_of_that_day(
    served: Hub, fetched: Site, repositories: Path, tmp_path: Path
) -> None:
    site = copy_of(fetched, tmp_path)
    model = served.repository("models", "tiny/bert").names["main"]
    data = served.repository("datasets", "tiny/reviews").names["main"]
    shutil.copytree(repositories / "reviews", tmp_path / "newer")
    reviews(tmp_path / "newer", words="revised")
    served.push("datasets", "tiny/reviews", tmp_path / "newer")
    try:
        (said,) = site.run(None, TRAIN)
    finally:
        served.repository("datasets", "tiny/reviews").names["main"] = data
    assert said.code == 0, said.err
    assert "data found in the cache" in said.err
    manifest = json.loads((site.folder / "run/manifest.json").read_text())
    assert manifest["model"]["fingerprint"] == f"tiny/bert@{model}"
    assert {split["revision"] for name, split in manifest["data"].items() if name != "validation"} == {data}
    assert manifest["data"]["train"]["fingerprint"] == f"hub:tiny/reviews@{data}:None:train"
    assert "revised" not in (site.folder / "run/predictions.jsonl").read_text()


def test_the_lock_states_commits_files_hashes_and_versions_and_no_token(fetched: Site, served: Hub) -> None:
    answer = json.loads((fetched.folder / "answer.json").read_text())
    lock = json.loads(Path(answer["lock"]).read_text())
    assert lock == json.loads((fetched.folder / "copy.json").read_text())
    commits = {source["key"]: (source["revision"], source["commit"]) for source in lock["sources"]}
    data = served.repository("datasets", "tiny/reviews").names["main"]
    model = served.repository("models", "tiny/bert").names["main"]
    assert commits == {"model": (None, model), "data.train": (None, data), "data.test": (None, data)}
    roots = {"hub": fetched.snapshots, "cache": fetched.cache}
    files = [file for source in lock["sources"] for file in (*source["files"], *source["made_from"])]
    assert len(files) >= 9
    for file in files:
        content = (roots[file["root"]] / file["path"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert lock["versions"].keys() >= {"finelaunch", "huggingface_hub", "transformers", "tokenizers", "torch"}
    assert fetched.cache / lock["prepared"] == Path(answer["prepared"])
    assert f"Bearer {TOKEN}" in served.authorised
    holders = [path for path in fetched.folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not holders


def test_only_what_a_job_reads_is_fetched_and_the_second_time_nothing(served: Hub, fetched: Site) -> None:
    assert not list(fetched.snapshots.rglob("*.onnx"))
    before, requests = files_of(fetched.cache), dict(served.requests)
    (said,) = fetched.run(served, ("prefetch", "reviews.yaml", "--json"))
    assert said.code == 0, said.err
    assert "already tokenised" in said.err
    fresh = {request for request, count in served.requests.items() if count > requests.get(request, 0)}
    assert not [request for request in fresh if request.startswith("GET") and "/resolve/" in request]
    after = files_of(fetched.cache)
    assert {name for name in after if after[name] != before.get(name)} <= {name for name in after if "locks/" in name}


def test_a_file_that_is_gone_is_named_with_the_command_that_fetches_it(fetched: Site, tmp_path: Path) -> None:
    site = copy_of(fetched, tmp_path)
    weights = next(site.snapshots.rglob("model.safetensors"))
    weights.unlink()
    rows = sorted(site.cache.rglob("rows.parquet"))
    rows[0].unlink()
    (said,) = site.run(None, TRAIN)
    assert said.code == 3, said.err
    for path in (weights, rows[0]):
        assert f"{path}: " in said.err
    assert "is missing" in said.err
    assert "finelaunch prefetch reviews.yaml" in said.err
    assert "Traceback" not in said.err


def test_a_second_prefetch_repairs_what_is_damaged(served: Hub, fetched: Site, tmp_path: Path) -> None:
    site = copy_of(fetched, tmp_path)
    before = {**files_of(site.snapshots), **files_of(site.cache)}
    weights = next(site.snapshots.rglob("model.safetensors")).resolve()
    weights.write_bytes(weights.read_bytes()[:-40] + bytes(40))
    rows = sorted(site.cache.rglob("rows.parquet"))[0]
    rows.write_bytes(rows.read_bytes()[:-1])
    next(site.snapshots.rglob("tokenizer.json")).unlink()
    (said,) = site.run(served, ("prefetch", "reviews.yaml"))
    assert said.code == 0, said.err
    after = {**files_of(site.snapshots), **files_of(site.cache)}
    same = {name for name in before if "locks/" not in name}
    assert {name: after.get(name) for name in same} == {name: before[name] for name in same}
    lock = Path(json.loads((site.folder / "answer.json").read_text())["lock"])
    lock = site.cache / "locks" / lock.name
    lock.write_text("{")
    refused, repaired = site.run(None, TRAIN)[0], site.run(served, ("prefetch", "reviews.yaml"))[0]
    assert refused.code == 2, refused.err
    assert f"{lock}: is no lock of this version" in refused.err
    assert repaired.code == 0, repaired.err
    assert read_lock(lock) is not None


@pytest.mark.parametrize(("name", "num_files"), [("tiny/pickled", 1), ("tiny/parts", 2)])
def test_pickled_weights_become_safetensors_with_the_same_bits_and_no_job_unpickles(
    served: Hub, repositories: Path, tmp_path: Path, name: str, num_files: int
) -> None:
    import torch

    site = site_at(tmp_path)
    words = ("prefetch", "reviews.yaml", f"model.name_or_path={name}")
    (said,) = site.run(served, words)
    assert said.code == 0, said.err
    (snapshot,) = (site.snapshots / f"models--{name.replace('/', '--')}" / "snapshots").iterdir()
    pickled, made = sorted(snapshot.glob("*.bin")), sorted(snapshot.glob("*.safetensors"))
    assert len(pickled) == len(made) == num_files
    before: dict[str, torch.Tensor] = {}
    after: dict[str, torch.Tensor] = {}
    for old, new in zip(pickled, made, strict=True):
        before |= torch.load(old, weights_only=True)
        after |= load_file(new)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        assert torch.equal(tensor.contiguous().view(torch.uint8), after[key].view(torch.uint8)), key
    tied = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    assert len({before[key].untyped_storage().data_ptr() for key in tied}) == 1 or num_files == 2
    for path in pickled:
        path.unlink()
    (trained,) = site.run(None, (*TRAIN, f"model.name_or_path={name}"))
    assert trained.code == 0, trained.err
    manifest = json.loads((site.folder / "run/manifest.json").read_text())
    assert manifest["model"]["fingerprint"] == f"{name}@{snapshot.name}"
    assert not [
        key for key in manifest["model"]["newly_initialised"] if not key.startswith(("classifier", "bert.pool"))
    ]


def test_what_a_login_node_only_downloads_a_job_without_a_network_tokenises(served: Hub, tmp_path: Path) -> None:
    site = site_at(tmp_path)
    first, second = site.run(
        served,
        ("prefetch", "reviews.yaml", "task.max_length=24", "--download-only", "--json"),
        ("prefetch", "reviews.yaml", "task.max_length=24", "--download-only", "--cluster", "local"),
    )
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.answer["prepared"] is None
    command = first.answer["tokenise_command"]
    assert command.startswith("srun --ntasks=1 ")
    assert "HF_HUB_OFFLINE=1" in command
    assert "--partition=debug" in second.out
    assert "--cluster local" in second.out
    assert not (site.cache / "prepared").exists()
    words = command.split(" finelaunch ")[1].split()
    done, trained = site.run(None, [*words, "--json"], (*TRAIN, "task.max_length=24"))
    assert done.code == 0, done.err
    assert Path(done.answer["prepared"]).is_dir()
    assert trained.code == 0, trained.err
    assert "data found in the cache" in trained.err


def test_the_proof_finds_what_a_job_will_find_and_names_what_it_will_miss(
    served: Hub, fetched: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = copy_of(fetched, tmp_path)
    monkeypatch.chdir(site.folder)
    environment = {
        "HF_HOME": str(site.folder / "hf"),
        "FINELAUNCH_CACHE": str(site.cache),
        "HF_ENDPOINT": served.endpoint,
    }

    def resolved(*words: str) -> Resolved:
        return resolve_offline(*load_recipe("reviews.yaml", read_overrides(words)["recipe"]), environment)

    before = dict(served.requests)
    found = resolved()
    assert not found.problems
    assert not found.notes
    text = "\n".join(found.found)
    assert "weights: 42 tensors in 1 files" in text
    assert "data: tokenised, test 20, train 32, validation 8" in text
    other = resolved("task.max_length=16")
    assert not other.problems
    assert other.notes[0].endswith("finelaunch prefetch reviews.yaml task.max_length=16 does")
    (problem,) = resolved("model.name_or_path=tiny/pickled").problems
    assert str(problem).startswith("reviews.yaml:6: model: tiny/pickled, tiny/reviews: nothing was fetched; first: ")
    tokenizer = next(site.snapshots.rglob("tokenizer.json"))
    tokenizer.unlink()
    (problem,) = resolved().problems
    assert str(problem).startswith(f"{tokenizer}: model: is missing")
    assert dict(served.requests) == before


def test_a_staged_copy_alone_is_enough_to_train(fetched: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = copy_of(fetched, tmp_path)
    monkeypatch.chdir(site.folder)
    monkeypatch.setenv("HF_HOME", str(site.folder / "hf"))
    monkeypatch.setenv("FINELAUNCH_CACHE", str(site.cache))
    lock = find_lock(load_recipe("reviews.yaml")[0])
    assert lock is not None
    environment = stage(lock, tmp_path / "node")
    shutil.rmtree(site.folder / "hf")
    (said,) = site.run(None, TRAIN, **environment)
    assert said.code == 0, said.err


def test_a_process_whose_network_is_closed_cannot_open_it_again(served: Hub) -> None:
    script = """
import http.client, socket, sys, urllib.request
from urllib.parse import urlsplit
early = socket.socket
from finelaunch.provision.network import NetworkClosed, close_network
close_network()
place = urlsplit(sys.argv[1])
attempts = [
    lambda: early().connect((place.hostname, place.port)),
    lambda: early().connect_ex((place.hostname, place.port)),
    lambda: early(type=socket.SOCK_DGRAM).sendto(b"x", (place.hostname, place.port)),
    lambda: socket.create_connection((place.hostname, place.port)),
    lambda: socket.getaddrinfo("huggingface.co", 443),
    lambda: http.client.HTTPConnection(place.hostname, place.port).request("GET", "/"),
]
for attempt in attempts:
    try:
        attempt()
    except NetworkClosed:
        continue
    sys.exit("reached")
one, other = socket.socketpair()
one.send(b"ok")
print(other.recv(2).decode())
"""
    before = dict(served.requests)
    done = subprocess.run([sys.executable, "-c", script, served.endpoint], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert dict(served.requests) == before
