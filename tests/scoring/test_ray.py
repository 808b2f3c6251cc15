"""Parts on a Ray cluster: the same store as from one process, also when a node is lost on the way."""

import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from disk import contents, write_jsonl
from flat_options import grouped

from tokenstats.computing import compute
from tokenstats.corpus.options import CorpusOptions
from tokenstats.errors import InputError, StoreError
from tokenstats.scoring.options import EngineOptions, ScoringOptions

ray = pytest.importorskip("ray", reason="needs the ray extra")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and files for the garbage collector


def start_cluster():
    """Two nodes of one CPU each, beside a head that may not work."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_worker_niceness", "0")  # else actors get next to nothing of a machine that runs other tests too
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        workers = [nodes.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
        yield nodes, workers
        ray.shutdown()
        nodes.shutdown()


own_cluster = pytest.fixture(start_cluster, name="own_cluster")
"""For a test that takes nodes away."""
shared_cluster = pytest.fixture(start_cluster, scope="module", name="shared_cluster")


@pytest.fixture
def cluster(shared_cluster):
    """Whole, and this process not connected to it, before and after the test."""
    yield shared_cluster
    ray.shutdown()


@pytest.mark.parametrize(
    ("passes", "made"),
    [
        ("together", "part-*"),
        pytest.param("separate", ".reference/part-*", marks=pytest.mark.thorough),
        pytest.param("separate", "part-*", marks=pytest.mark.thorough),
    ],
)
def test_a_node_that_dies_in_mid_run_costs_nothing_but_time(own_cluster, tmp_path: Path, chats, base, warmup, passes, made):
    nodes, workers = own_cluster
    data = write_jsonl(tmp_path / "d.jsonl", chats[:120])
    options = {"model": warmup, "reference": base, "part_tokens": 500, "batch_tokens": 100, "reference_pass": passes}
    done = compute(data, **grouped(**options), store=tmp_path / "alone")
    alone, name = done.store, done.name
    folder = tmp_path / "store" / "stats" / name

    def lose_a_node() -> None:
        until = time.monotonic() + 120
        while len(list(folder.glob(made))) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        nodes.remove_node(workers[0], allow_graceful=False)
        # as an actor leaves it that is killed while it writes
        (folder / ".writing-00000000-part-00000.parquet").write_bytes(b"half")

    killer = threading.Thread(target=lose_a_node)
    killer.start()
    together = compute(
        data, **grouped(**options, kind="ray", workers=2, ray_address=nodes.address, device="cpu"), store=tmp_path / "store"
    ).store
    killer.join()
    assert alone.part_count > 10
    assert contents(together.path) == contents(alone.path)
    assert not ray.is_initialized(), "the run that reached for the cluster lets it go"


def test_actors_that_the_cluster_has_no_room_for_are_not_waited_for(own_cluster, tmp_path: Path, chats, base):
    """As after a node was lost at the end of a run: all parts are there, and the new actor finds no free CPU."""
    nodes, workers = own_cluster
    nodes.remove_node(workers[0])
    options = {"model": base, "part_tokens": 500, "batch_tokens": 100}
    data = write_jsonl(tmp_path / "d.jsonl", chats[:30])
    alone = compute(data, **grouped(**options), store=tmp_path / "alone").store
    on_ray = {"kind": "ray", "workers": 2, "ray_address": nodes.address, "device": "cpu"}
    store = tmp_path / "store"
    run = threading.Thread(target=lambda: compute(data, **grouped(**options, **on_ray), store=store), daemon=True)
    run.start()
    run.join(timeout=200)
    assert not run.is_alive(), "still waiting for the second actor"
    assert contents(store) == contents(alone.path)


def test_answers_that_never_come_stop_nobody(cluster, tmp_path: Path, chats, base, monkeypatch):
    """As when a node dies between a task's end and its answer: Ray may then say neither that it ended nor that it failed."""
    from tokenstats.scoring import ray_engine

    nodes, _ = cluster
    options = {"model": base, "part_tokens": 500, "batch_tokens": 100}
    data = write_jsonl(tmp_path / "d.jsonl", chats[:30])
    alone = compute(data, **grouped(**options), store=tmp_path / "alone").store
    tasks: dict = {}  # in the order they were given out
    real, glance = ray_engine.ray.wait, 0.5

    def wait(refs, timeout, **how):
        for ref in refs if timeout == glance else []:
            tasks.setdefault(ref, len(tasks))
        heard = [ref for ref in refs if tasks.get(ref) not in (1, 4)]  # a start, and a part
        ready, _ = real(heard, timeout=timeout, **how) if heard else ([], [])
        return ready, [ref for ref in refs if ref not in ready]

    monkeypatch.setattr(ray_engine.ray, "wait", wait)
    monkeypatch.setattr(ray_engine, "_GLANCE", glance)
    store = tmp_path / "store"
    on_ray = {"kind": "ray", "workers": 2, "ray_address": nodes.address, "device": "cpu"}
    run = threading.Thread(target=lambda: compute(data, **grouped(**options, **on_ray), store=store), daemon=True)
    run.start()
    run.join(timeout=200)
    assert not run.is_alive(), "still waiting for an answer"
    assert len(tasks) > 6
    assert contents(store) == contents(alone.path)


def test_what_the_user_must_mend_comes_back_from_the_cluster_as_one_line(cluster, tmp_path: Path, chats, base):
    nodes, _ = cluster
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    with pytest.raises(InputError, match="same weights"):
        compute(
            data,
            model=base,
            reference=base,
            store=tmp_path / "s",
            engine=EngineOptions(kind="ray", workers=1, ray_address=nodes.address),
        )
    assert not (tmp_path / "s").exists()
    assert not ray.is_initialized()


def test_an_address_where_no_cluster_is_is_named(tmp_path: Path, chats, base):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    with pytest.raises(InputError, match="no Ray cluster answers at nonsense"):
        compute(data, model=base, store=tmp_path / "s", engine=EngineOptions(kind="ray", ray_address="nonsense"))
    assert not (tmp_path / "s").exists()


def test_no_actor_outlives_a_run_that_failed(cluster, tmp_path: Path, chats, base, warmup, monkeypatch):
    """Not even where somebody keeps the error, as a notebook does: its traceback holds on to all that the run had."""
    nodes, _ = cluster
    ray.init(address=nodes.address, log_to_driver=False, configure_logging=False)  # the caller's own: it stays
    data = write_jsonl(tmp_path / "d.jsonl", chats[:30])
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data.read_text() + "no JSON\n")
    on_ray = {"part_tokens": 500, "kind": "ray", "workers": 2, "device": "cpu"}
    compute(data, model=base, store=tmp_path / "other", corpus=CorpusOptions(part_tokens=900))

    def interrupt(*_):
        raise KeyboardInterrupt

    kept = []
    for error, rows, models, store, patch in (
        (InputError, bad, {"model": base}, "bad row", None),
        (StoreError, data, {"model": base}, "other", None),
        (KeyboardInterrupt, data, {"model": base}, "interrupted", "tokenstats.scoring.workers.Progress.advance"),
        (InputError, bad, {"model": warmup, "reference": base, "reference_pass": "separate"}, "bad row, first pass", None),
    ):
        with monkeypatch.context() as patched:
            if patch:
                patched.setattr(patch, interrupt)
            with pytest.raises(error) as failure:
                compute(rows, **grouped(**models, **on_ray), store=tmp_path / store)
        kept.append(failure)
        until = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        assert ray.available_resources().get("CPU", 0) == 2, f"{store}: actors still hold the cluster"
    assert ray.is_initialized()


def test_an_unknown_engine_is_named():
    with pytest.raises(InputError, match="kind got 'spark'; expected one of: local, ray"):
        EngineOptions(kind="spark")


def test_an_address_beside_a_cluster_that_the_process_is_connected_to_is_refused(cluster, tmp_path: Path, chats, base):
    nodes, _ = cluster
    ray.init(address=nodes.address, log_to_driver=False, configure_logging=False)
    data, on_ray = write_jsonl(tmp_path / "d.jsonl", chats[:3]), EngineOptions(kind="ray", ray_address="ray://elsewhere:1")
    with pytest.raises(InputError, match="ray_address would do nothing: this process is connected to a cluster"):
        compute(data, model=base, store=tmp_path / "s", engine=on_ray)
    assert ray.is_initialized()


def test_without_an_address_the_cluster_is_a_new_one_whatever_a_dead_one_left_behind(tmp_path: Path, chats, base, monkeypatch):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with TemporaryDirectory(prefix="r") as temporary:  # pytest's own is too long for the sockets that Ray puts there
        monkeypatch.setenv("RAY_TMPDIR", temporary)
        left = Path(temporary) / "ray" / "ray_current_cluster"
        left.parent.mkdir()
        left.write_text("127.0.0.1:1")
        assert ray._private.utils.read_ray_address() == "127.0.0.1:1"
        on_ray = EngineOptions(kind="ray", workers=1)
        done = compute(data, model=base, store=tmp_path / "s", engine=on_ray, scoring=ScoringOptions(device="cpu"))
        assert not ray.is_initialized()
    assert done.store.manifest.sequences == 3
