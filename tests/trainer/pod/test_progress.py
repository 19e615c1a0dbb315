"""Tests what a rank publishes: the share of the accelerators' peak, and its page on every address of the pod."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dapt_trainer.context import RankPace
from dapt_trainer.pod.heartbeat import Heart
from dapt_trainer.pod.progress import Board, serve
from dapt_trainer.pod.settings import PodSettings
from dapt_trainer.pod.time_left import TimeLeft
from support.launch_builders import stage_run

STAGE = stage_run().identity.stage


def board(folder: Path, peak_flops: float = 0.0) -> Board:
    return Board(stage_run().stage_file, Heart(folder, 0), peak_flops)


def test_the_share_of_the_peak_is_speed_times_work_over_the_peak(tmp_path: Path) -> None:
    shown = board(tmp_path, peak_flops=16 * 989e12)
    shown.update(flops_per_token=6 * 8e9)
    assert "mfu_ratio" not in shown.measures, "the speed is not known yet"
    shown.update(tokens_per_second=132_000.0, step=1)
    assert shown.measures["mfu_ratio"] == pytest.approx(0.4004, abs=1e-4)


def test_start_up_ends_with_the_first_share_of_the_work(tmp_path: Path) -> None:
    shown = Board(stage_run().stage_file, Heart(tmp_path, 0), first_pid=os.getpid())
    shown.update(activity="loading the model", total_steps=40, fraction=0.0)
    assert "start_up_seconds" not in shown.measures, "nothing is done yet"
    shown.update(fraction=0.25)
    first = shown.measures
    assert first["start_up_seconds"] > 0
    assert first["start_up_cpu_seconds"] > 0
    shown.update(step=1)
    assert shown.measures["start_up_seconds"] == first["start_up_seconds"], "measured once"


def test_start_up_is_not_measured_from_a_process_that_is_gone(tmp_path: Path) -> None:
    shown = Board(stage_run().stage_file, Heart(tmp_path, 0), first_pid=2**22 + 1)
    shown.update(step=1)
    assert "start_up_seconds" not in shown.measures


def test_without_a_peak_there_is_no_share(tmp_path: Path) -> None:
    shown = board(tmp_path)
    shown.update(flops_per_token=6 * 8e9, tokens_per_second=132_000.0)
    assert "mfu_ratio" not in shown.measures


def test_what_is_not_known_any_more_is_shown_nowhere(tmp_path: Path) -> None:
    shown = board(tmp_path)
    shown.update(domain_perplexity=12.5, general_perplexity=9.0)
    shown.update(activity="a1-avg2: combining the weights", domain_perplexity=None)
    assert (shown.progress.domain_perplexity, shown.progress.general_perplexity) == (None, 9.0)
    assert "domain_perplexity" not in shown.measures
    assert shown.measures["general_perplexity"] == 9.0


def test_the_time_left_follows_from_the_shares_since_the_first() -> None:
    seconds = iter((100.0, 110.0, 120.0, 130.0, 150.0))
    left = TimeLeft(lambda: next(seconds))
    assert left.seconds(0.5) is None  # continued: the half took no time
    assert left.seconds(0.5) is None
    assert left.seconds(0.75) == pytest.approx(20.0)
    assert left.seconds(0.1) is None  # another part begins
    assert left.seconds(0.2) == pytest.approx(160.0)


def test_a_share_gets_an_estimate_unless_the_stage_has_its_own(tmp_path: Path) -> None:
    shown = board(tmp_path)
    shown.update(fraction=0.1)
    assert shown.progress.eta_seconds is None
    shown.update(fraction=0.2)
    assert shown.progress.eta_seconds is not None
    shown.update(fraction=0.3, eta_seconds=7.0)
    assert shown.progress.eta_seconds == 7.0


def test_the_metrics_name_each_rank_with_its_node(tmp_path: Path) -> None:
    shown = board(tmp_path)
    server = serve(shown, stage_run().stage_file, 0)
    assert server is not None
    try:
        paces = (RankPace(0, "n0", 0.0, 1.0), RankPace(1, "n1", 0.5, 1.0))
        shown.update(step=20, rank_paces=paces, slow_rank="rank 1 on node n1 is behind")
        page = urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/metrics").read().decode()
    finally:
        server.shutdown()
        server.server_close()
    assert 'node="n1",rank="1"} 0.5' in page.replace("namespace", "ns").replace('name="clinical",', "")
    assert shown.progress.slow_rank == "rank 1 on node n1 is behind"


def test_what_peers_say_of_themselves_does_not_grow_the_page(tmp_path: Path) -> None:
    shown = board(tmp_path)
    server = serve(shown, stage_run().stage_file, 0)
    assert server is not None
    nodes = [
        'a"b',
        "a\nb 1\n",
        "a\\",
        "\ud800",
        "\u202ea",
        "\x1b[2J",
        "n" * 10**6,
        "",
        "{}",
        "\0",
        "é" * 500,
        "# x",
    ]
    try:
        for time in range(3):
            shown.update(
                rank_paces=tuple(
                    RankPace(10**30 + number, f"{nodes[number % 12]}{time}", float("nan"), 10.0**300)
                    for number in range(20_000)
                )
            )
            page = urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/metrics").read()
    finally:
        server.shutdown()
        server.server_close()
    samples = [
        sample for family in text_string_to_metric_families(page.decode()) for sample in family.samples
    ]
    of_ranks = [sample.labels["node"] for sample in samples if "rank" in sample.labels]
    assert 0 < len(of_ranks) <= 2 * 4096
    assert max(map(len, of_ranks)) <= 253
    assert not any("\n" in node or "\x1b" in node or "\u202e" in node for node in of_ranks)


def test_the_peak_is_that_of_all_ranks() -> None:
    pod = {"DAPT_WORK": "/work", "PET_NNODES": "2", "PET_NPROC_PER_NODE": "8"}
    assert PodSettings.read(pod | {"DAPT_PEAK_TFLOPS": "989"}).peak_flops == 16 * 989e12
    assert PodSettings.read(pod).peak_flops == 0.0


def loopbacks() -> list[str]:
    """The loopback addresses that this machine has; a kernel may have been started without one of the families."""
    found = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind((host, 0))
            found.append(host)
    return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """Serve a board and return the port; the server ends with the test."""
    servers = []

    def start() -> int:
        server = serve(board(tmp_path), stage_run().stage_file, 0)
        assert server is not None
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def reading(host: str, port: int) -> str:
    address = f"[{host}]" if ":" in host else host
    with urllib.request.urlopen(f"http://{address}:{port}/progress", timeout=10) as answer:
        return str(json.load(answer)["stage"])


def test_a_pod_answers_on_every_family_that_it_has(served: Callable[[], int]) -> None:
    port = served()
    assert [reading(host, port) for host in loopbacks()] == [STAGE for _ in loopbacks()]


@pytest.mark.parametrize("host", loopbacks())
def test_a_local_run_serves_on_its_own_address_alone(
    served: Callable[[], int], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("DAPT_PROGRESS_HOST", host)
    port = served()
    assert reading(host, port) == STAGE
    for other in set(loopbacks()) - {host}:
        with pytest.raises(OSError, match="refused"):
            reading(other, port)


@pytest.mark.parametrize("kernel", ["without IPv6", "without an IPv6 address"])
def test_a_kernel_without_the_newer_family_serves_the_other(
    served: Callable[[], int], monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    if kernel == "without IPv6":
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    else:
        monkeypatch.setattr("dapt_trainer.pod.progress.DualStackServer", refuse)
    assert reading("127.0.0.1", served()) == STAGE


def test_a_taken_port_costs_the_live_view_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve(board(tmp_path), stage_run().stage_file, port) is None
    assert caplog.messages == [
        f"cannot serve port {port} (Address already in use): no live progress of this run"
    ]


def test_no_name_is_looked_up(served: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(*_: object) -> str:
        raise AssertionError("a pod may have no DNS that answers")

    for name in ("getfqdn", "gethostbyaddr"):
        monkeypatch.setattr(socket, name, looked_up)
    served()
