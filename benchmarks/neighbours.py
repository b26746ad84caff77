"""Where does FAISS beat a matrix product? Per observation, over pools, and with an approximate index; one CPU thread.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py [--rounds 5] [--target benchmarks/results/neighbours.json]

The back ends take turns in one process and are timed by the processor time of this process, so that work beside it
moves both alike; a ratio is the median over rounds of FAISS's time over the product's, above 1 where FAISS is slower.
Both include the exact comparison of the candidates, without which they would not give one answer. About three minutes.
Chunks are smooth functions of six numbers with a little noise, as a teacher's are: an approximate index finds far less
in noise without structure. Prints tables and the FAISS_FROM they call for. distill/hypotheses/neighbours.py has it by hand.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from running import ROOT, growth, in_turns, keep
from torch import Tensor

from distill.hypotheses.index import IVF_FROM, HypothesisIndex
from distill.hypotheses.neighbours import faiss_available, nearest, nearest_k

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
DIMENSIONS = (32, 256)
POOLS = (5_000, 10_000, 20_000)
POOL_DIMENSION, POOL_NEIGHBOURS = 112, 5
INDEX_SIZE, INDEX_QUERIES = 250_000, 500


def clouds(*counts: int, size: int) -> list[Tensor]:
    """Sets `[N, size]` of vectors on one curved six-dimensional sheet, with 3 % noise."""
    generator = torch.Generator().manual_seed(0)
    bend = 0.5 * torch.randn(6, 64, generator=generator)
    spread = torch.randn(64, size, generator=generator) / (64 * size) ** 0.5

    def cloud(count: int) -> Tensor:
        flat = torch.tanh(torch.randn(count, 6, generator=generator) @ bend) @ spread
        return flat + 0.03 * flat.std() * torch.randn(count, size, generator=generator)

    return [cloud(count) for count in counts]


def per_observation(rounds: int) -> list[dict[str, Any]]:
    """M = K chunks, both directions as the Chamfer distance asks, several observations in a call."""
    rows = []
    for size in DIMENSIONS:
        for count in SIZES:
            batch = max(1, min(16, 2**16 // count**2))
            student, teacher = (
                cloud.view(batch, count, size) for cloud in clouds(batch * count, batch * count, size=size)
            )

            def both_ways(backend: Any, first: Tensor = student, second: Tensor = teacher) -> None:
                nearest(first, second, backend)
                nearest(second, first, backend)

            calls = {name: partial(both_ways, name) for name in ("matmul", "faiss")}
            repeats = max(1, 2**17 // (batch * count**2))
            rows.append({"dimension": size, "count": count, "observations": batch, **in_turns(calls, rounds, repeats)})
    return rows


def pools(rounds: int) -> list[dict[str, Any]]:
    """k nearest others of every point of one pool, as pooled precision and recall ask."""
    rows = []
    for count in POOLS:
        (pool,) = clouds(count, size=POOL_DIMENSION)
        calls = {
            name: partial(nearest_k, pool[None], pool[None], POOL_NEIGHBOURS + 1, name, strict=False)
            for name in ("matmul", "faiss")
        }
        rows.append({"points": count, "dimension": POOL_DIMENSION, "neighbours": POOL_NEIGHBOURS,
                     **in_turns(calls, max(1, rounds // 4))})  # fmt: skip
    return rows


def approximate() -> dict[str, Any]:
    """An index of many vectors: exact by products against FAISS's IVF, with the share of true neighbours it finds."""
    vectors, query = clouds(INDEX_SIZE, INDEX_QUERIES, size=POOL_DIMENSION)
    indexes, build_s = {}, {}
    sample = vectors[torch.randperm(INDEX_SIZE, generator=torch.Generator().manual_seed(1))[:50_000]]
    for name, is_approximate in (("matmul", False), ("faiss", True)):
        begin = time.process_time()
        indexes[name] = HypothesisIndex(sample, INDEX_SIZE, is_approximate)
        for block in vectors.split(2**14):
            indexes[name].add(block)
        build_s[name] = time.process_time() - begin
    row: dict[str, Any] = {"vectors": INDEX_SIZE, "dimension": POOL_DIMENSION, "lists": indexes["faiss"].lists,
                           "build_s": build_s}  # fmt: skip
    for asked in (1, INDEX_QUERIES):
        calls = {name: partial(index.search, query[:asked], POOL_NEIGHBOURS) for name, index in indexes.items()}
        row[f"queries_{asked}"] = in_turns(calls, 3)
    true, found = (indexes[name].search(query, POOL_NEIGHBOURS)[1] for name in ("matmul", "faiss"))
    row["recall"] = float((found[:, :, None] == true[:, None]).any(-1).float().mean())
    return row


def growth_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth of the time of an observation with M = K, by back end and dimension: 2 where every pair costs the same."""
    found = {}
    for size in DIMENSIONS:
        here = [row for row in rows if row["dimension"] == size]
        for name in ("matmul", "faiss"):
            times = [row[f"{name}_ms"] / row["observations"] for row in here]
            found[f"{name}, D = {size}"] = growth([row["count"] for row in here], times)
    return found


def crossover(rows: list[dict[str, Any]]) -> int | None:
    """Fewest pairs from which on FAISS is faster in every dimension and at every larger size; None: nowhere."""
    slower = max((row["count"] for row in rows if row["ratio"] >= 1), default=0)
    later = [count for count in SIZES if count > slower]
    return later[0] ** 2 if later else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--target", type=Path, default=ROOT / "benchmarks/results/neighbours.json")
    arguments = parser.parse_args()
    if not faiss_available():
        raise SystemExit("FAISS is not installed, there is nothing to compare with; pip install faiss-cpu")
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    begin = time.perf_counter()
    rows, pooled, index = per_observation(arguments.rounds), pools(arguments.rounds), approximate()
    result = {
        "rounds": arguments.rounds, "packages": {"torch": torch.__version__, "faiss": faiss.__version__},
        "faiss_build": faiss.get_compile_options().strip(), "growth": growth_of(rows),
        "per_observation": rows, "faiss_from": crossover(rows), "pools": pooled, "index": index,
    }  # fmt: skip
    keep(arguments.target, result, begin)
    print("| D | M = K | matmul, ms an observation | FAISS, ms | FAISS / matmul |\n|---|---|---|---|---|")
    for row in rows:
        each = row["observations"]
        print(f"| {row['dimension']} | {row['count']} | {row['matmul_ms'] / each:.3f} | {row['faiss_ms'] / each:.3f} | "
              f"{row['ratio']:.2f} |")  # fmt: skip
    print("\n| pool | matmul, s | FAISS, s | FAISS / matmul |\n|---|---|---|---|")
    for row in pooled:
        print(f"| {row['points']:,} x {row['dimension']}, k = {row['neighbours']} | {row['matmul_ms'] / 1e3:.2f} | "
              f"{row['faiss_ms'] / 1e3:.2f} | {row['ratio']:.2f} |")  # fmt: skip
    print(f"\n| {index['vectors']:,} x {index['dimension']}, {index['lists']} lists | exact, ms a query | IVF, ms | "
          "IVF / exact |\n|---|---|---|---|")  # fmt: skip
    for asked in (1, INDEX_QUERIES):
        row = index[f"queries_{asked}"]
        print(f"| {asked} at once | {row['matmul_ms'] / asked:.2f} | {row['faiss_ms'] / asked:.2f} | {row['ratio']:.3f} |")
    print(f"\nIVF finds {index['recall']:.4f} of the true {POOL_NEIGHBOURS} neighbours; building it took "
          f"{index['build_s']['faiss']:.1f} s. An index is approximate from {IVF_FROM:,} vectors on.")  # fmt: skip
    for name, fit in result["growth"].items():
        print(f"{name}: time grows as K^{fit['exponent']:.2f} from K = {fit['holds_from']} on")
    print(f"FAISS_FROM by this table: {result['faiss_from'] or 'nowhere, products win at the largest size'}")


if __name__ == "__main__":
    main()
