"""Tidemark and its peers side by side, in one run on one machine: `make bench-peers`.

The same SIFT rows go into each, effort is tuned until recall@10 reaches 0.95, then one client searches, one query at a
time; servers also while a second process inserts. Each peer runs in a process of its own, one after the other, so that
none can disturb the next. Every peer is optional; one that is not installed, or fails, is left out and said so.
Their packages are beside the project's in an environment of their own, `.venv/peers`, which `make bench-peers` makes.

Qdrant and Weaviate are measured where `--qdrant URL` and `--weaviate URL` say that one runs; a collection is made
and removed there. Graphs are all built with M 16 and efConstruction 200. Tidemark and Chroma are searched over HTTP
with the same bare client, Qdrant and Weaviate with their own gRPC clients; LanceDB, hnswlib and usearch are calls in
one process, Milvus Lite is gRPC to a thread of it. Encoding the query and decoding the ids is part of every search.
hnswlib and usearch keep vectors in memory and nothing else, no log and no file: they are here as the floor.

Prints a table and writes benchmarks/results/peers.json. Names of figures after VectorDBBench:
insert_seconds: until all rows are acknowledged; searchable_after_insert_seconds: until a search finds the last one;
indexed_after_searchable_seconds: until all are in an index. The rates are rows over the sum of these.
"""

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa
from confluent_kafka import Producer
from numpy.typing import NDArray

from benchmarks import machine, sift
from benchmarks.client import SearchClient
from benchmarks.main_job import TOPIC, Run
from benchmarks.report import shown
from cli.ports import free_port
from tidemark import __version__
from tidemark.kafka_settings import producer_settings

RESULTS = Path(__file__).parent / "results" / "peers.json"
RECALL, K = 0.95, 10
TUNING_QUERIES = 500  # 5,000 neighbours: recall to 0.3%, in seconds also where a search takes 50 ms
M, EF_CONSTRUCTION = 16, 200
BATCH = 2_000  # 1 MB of rows a request: within the limits of every peer
WAIT_S = 1_800.0
# Rows that a second process inserts while searches are measured: a steady trickle that every server can take.
INSERT_RATE, INSERT_BURST_S, INSERT_LEAD_S = 1_000, 0.1, 2.0
COLLECTION = "TidemarkPeers"
# efSearch of graphs, and the lists that LanceDB probes; in small steps: nobody is measured far above the recall asked.
EF = (10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512)
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
COLUMNS = (
    *("peer", "version", "index", "effort", "recall", "insert_seconds", "searchable_after_insert_seconds"),
    *("indexed_after_searchable_seconds", "searchable_per_s", "indexed_per_s", "p50_ms", "p99_ms", "qps"),
    *("p99_ms_while_inserting", "p99_while_inserting_over_idle", "inserted_per_s"),
)

Rows = NDArray[np.float32]
Insert = Callable[[int, Rows], None]
Figures = dict[str, float | str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer may keep its files, how many rows will come, and where its server is if it is given."""

    directory: Path
    rows: int
    url: str


class Peer(Protocol):
    """One store with one empty collection; what it started is stopped by the ExitStack it is made with.

    Rows are called by their numbers. `wait_indexed` returns when nothing is built any more, and the moment at which
    all rows were in an index. `address` is what `WRITERS` inserts through from another process, "" where none can.
    """

    version: str
    index: str
    address: str

    @property
    def efforts(self) -> Sequence[float]: ...
    def insert(self, base: Rows) -> None: ...
    def count(self) -> int: ...
    def wait_indexed(self) -> float: ...
    def tune(self, effort: float) -> None: ...
    def search(self, query: Rows) -> list[int]: ...


# -- Tidemark --------------------------------------------------------------------------------------------------------


class Tidemark:
    """A real Kafka, the consumer and the api, as processes; inserted is what the broker has acknowledged."""

    version = __version__
    index = "ivfpq"
    efforts = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0)

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self._run = Run(place.rows, 0.0, stack)
        self._rows = place.rows
        self.address = self._run.deployment.kafka.bootstrap_servers
        self._run.deployment.start("consumer")
        self._run.deployment.start("api")
        self._client = wait_for(self._ready, "Tidemark's api")
        stack.callback(self._client.close)
        self._effort = 1.0

    def _ready(self) -> SearchClient | None:
        try:
            client = self._run.client()
        except OSError:
            return None
        if client.get("/readyz").get("ready"):
            return client
        client.close()
        return None

    def insert(self, base: Rows) -> None:
        self._run.produce_backlog()

    def count(self) -> int:
        partitions = self._client.get("/collections/sift/lag")["partitions"]
        return sum(partition["applied_position"] or 0 for partition in partitions)

    def wait_indexed(self) -> float:
        wait_for(self._built, "Tidemark's builds")
        indexed = time.perf_counter()
        self._run.settle()
        return indexed

    def _built(self) -> bool:
        lag = self._client.get("/collections/sift/lag")
        checkpointed = sum(partition["checkpointed_position"] or 0 for partition in lag["partitions"])
        return lag["unbuilt_rows"] == 0 and checkpointed >= self._rows

    def tune(self, effort: float) -> None:
        self._effort = effort

    def search(self, query: Rows) -> list[int]:
        body = {"vector": query, "k": K, "include": [], "effort": self._effort}
        answer = self._client.post(self._client.request(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)))
        return [int(hit["id"][1:]) for hit in orjson.loads(answer)["hits"]]


def write_to_tidemark(address: str) -> Insert:
    producer = Producer(producer_settings({"bootstrap.servers": address}))

    def insert(first: int, rows: Rows) -> None:
        for number, row in enumerate(rows, first):
            producer.produce(TOPIC, row.tobytes(), f"v{number}")
        producer.flush()

    return insert


# -- Chroma ----------------------------------------------------------------------------------------------------------


class Chroma:
    """Its own server as a child process. It takes rows into its log; the first search after that indexes them."""

    index = "HNSW"
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("chromadb")
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._directory = place.directory
        self._running = stack.enter_context(ExitStack())
        self._start()
        hnsw = {"space": "l2", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION}
        self._client.create_collection(COLLECTION, configuration={"hnsw": hnsw}, embedding_function=None)

    def _start(self) -> None:
        log = self._running.enter_context((self._directory / "chroma.log").open("ab"))
        command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(self._directory / "chroma")]
        start(self._running, [*command, "--host", "127.0.0.1", "--port", str(self._port)], log)
        self._client = wait_for(self._connected, "Chroma's server")

    def _connected(self) -> Any:
        try:
            return connect_to_chroma(self.address)
        except ValueError:  # what its client makes of a refused connection
            return None

    def insert(self, base: Rows) -> None:
        insert_all(write_to_chroma(self.address), base)

    def count(self) -> int:
        return int(self._collection.count())

    def wait_indexed(self) -> float:
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        """An index in memory keeps the efSearch it was loaded with, so the server must load it again."""
        self._client.get_collection(COLLECTION, embedding_function=None).modify(
            configuration={"hnsw": {"ef_search": int(effort)}}
        )
        self._running.close()
        self._start()
        self._collection = self._client.get_collection(COLLECTION, embedding_function=None)
        path = "/api/v2/tenants/default_tenant/databases/default_database/collections"
        self._head = f"POST {path}/{self._collection.id}/query HTTP/1.1\r\nhost: benchmark\r\n"
        self._http = self._running.enter_context(closing(SearchClient(self._port, COLLECTION)))

    def search(self, query: Rows) -> list[int]:
        body = {"query_embeddings": [query], "n_results": K, "include": []}
        encoded = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        head = f"{self._head}content-type: application/json\r\ncontent-length: {len(encoded)}\r\n\r\n"
        answer = self._http.post(head.encode() + encoded)
        return [int(name) for name in orjson.loads(answer)["ids"][0]]


def connect_to_chroma(address: str) -> Any:
    settings = import_module("chromadb.config").Settings(anonymized_telemetry=False)
    host, _, port = address.partition(":")
    return import_module("chromadb").HttpClient(host=host, port=int(port), settings=settings)


def write_to_chroma(address: str) -> Insert:
    collection = connect_to_chroma(address).get_collection(COLLECTION, embedding_function=None)

    def insert(first: int, rows: Rows) -> None:
        collection.add(ids=[str(number) for number in range(first, first + len(rows))], embeddings=rows)

    return insert


# -- Qdrant and Weaviate, where they run -----------------------------------------------------------------------------


class Qdrant:
    """A server that runs already, over gRPC on its usual port. It keeps small segments without an index."""

    index = "HNSW"
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.address = place.url
        self._models = models = import_module("qdrant_client.models")
        self._client = connect_to_qdrant(place.url)
        stack.callback(self._client.close)
        self.version = str(self._client.info().version)
        self._client.delete_collection(COLLECTION)
        self._client.create_collection(
            COLLECTION,
            vectors_config=models.VectorParams(size=sift.DIMENSION, distance=models.Distance.EUCLID),
            hnsw_config=models.HnswConfigDiff(m=M, ef_construct=EF_CONSTRUCTION),
        )
        stack.callback(self._client.delete_collection, COLLECTION)

    def insert(self, base: Rows) -> None:
        insert_all(write_to_qdrant(self.address), base)

    def count(self) -> int:
        return int(self._client.count(COLLECTION, exact=True).count)

    def wait_indexed(self) -> float:
        green = self._models.CollectionStatus.GREEN
        wait_for(lambda: self._client.get_collection(COLLECTION).status == green, "Qdrant's optimizers")
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._parameters = self._models.SearchParams(hnsw_ef=int(effort))

    def search(self, query: Rows) -> list[int]:
        answer = self._client.query_points(
            COLLECTION, query=query.tolist(), limit=K, search_params=self._parameters, with_payload=False
        )
        return [int(point.id) for point in answer.points]


def connect_to_qdrant(url: str) -> Any:
    return import_module("qdrant_client").QdrantClient(url=url, prefer_grpc=True, timeout=60)


def write_to_qdrant(url: str) -> Insert:
    client, batch = connect_to_qdrant(url), import_module("qdrant_client.models").Batch

    def insert(first: int, rows: Rows) -> None:
        ids = list(range(first, first + len(rows)))
        client.upsert(COLLECTION, points=batch(ids=ids, vectors=rows.tolist()), wait=True)

    return insert


class Weaviate:
    """A server that runs already, over gRPC on port 50051 of its host. A row's uuid is its number plus one."""

    index = "HNSW"
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.address = place.url
        config = import_module("weaviate.classes.config")
        self._reconfigure = config.Reconfigure
        client = connect_to_weaviate(place.url)
        stack.callback(client.close)
        self.version = str(client.get_meta()["version"])
        client.collections.delete(COLLECTION)
        hnsw = config.Configure.VectorIndex.hnsw(
            distance_metric=config.VectorDistances.L2_SQUARED, max_connections=M, ef_construction=EF_CONSTRUCTION
        )
        vectors = config.Configure.Vectors.self_provided(vector_index_config=hnsw)
        self._collection = client.collections.create(COLLECTION, vector_config=vectors)
        stack.callback(client.collections.delete, COLLECTION)

    def insert(self, base: Rows) -> None:
        insert_all(write_to_weaviate(self.address), base)

    def count(self) -> int:
        return int(self._collection.aggregate.over_all(total_count=True).total_count)

    def wait_indexed(self) -> float:
        wait_for(
            lambda: all(shard.vector_queue_size == 0 for shard in self._collection.config.get_shards()),
            "Weaviate's queue of vectors",
        )
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        hnsw = self._reconfigure.VectorIndex.hnsw(ef=int(effort))
        vectors = self._reconfigure.Vectors.update(vector_index_config=hnsw)
        self._collection.config.update(vector_config=vectors)

    def search(self, query: Rows) -> list[int]:
        found = self._collection.query.near_vector(near_vector=query.tolist(), limit=K, return_properties=False)
        return [int(UUID(str(one.uuid))) - 1 for one in found.objects]


def connect_to_weaviate(url: str) -> Any:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return import_module("weaviate").connect_to_custom(
        http_host=parts.hostname,
        http_port=parts.port or (443 if secure else 8080),
        http_secure=secure,
        grpc_host=parts.hostname,
        grpc_port=50051,
        grpc_secure=secure,
        skip_init_checks=True,  # one of them asks a package index for a newer client
    )


def write_to_weaviate(url: str) -> Insert:
    data = connect_to_weaviate(url).collections.get(COLLECTION).data
    row_of = import_module("weaviate.classes.data").DataObject

    def insert(first: int, rows: Rows) -> None:
        objects = [row_of(uuid=UUID(int=n + 1), vector=row) for n, row in enumerate(rows.tolist(), first)]
        answer = data.insert_many(objects)
        if answer.has_errors:
            raise RuntimeError(f"Weaviate refused rows: {next(iter(answer.errors.values()))}")

    return insert


# -- libraries -------------------------------------------------------------------------------------------------------


class Lance:
    """LanceDB on a local directory. Rows without an index are scanned; an index is built when asked for.

    Of 100,000 rows IVF_FLAT is built in a tenth of the time of IVF_HNSW_SQ and IVF_PQ, and searched no slower.
    """

    index = "IVF_FLAT"
    address = ""
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("lancedb")
        self._schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), sift.DIMENSION))])
        self._index_kind = import_module("lancedb.index").IvfFlat
        store = import_module("lancedb").connect(str(place.directory / "lance"))
        self._table = store.create_table(COLLECTION, schema=self._schema)
        self._effort = EF[0]

    def insert(self, base: Rows) -> None:
        for first, rows in batches(base):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), sift.DIMENSION)
            numbers = pa.array(np.arange(first, first + len(rows)))
            self._table.add(pa.Table.from_arrays([numbers, vectors], schema=self._schema))

    def count(self) -> int:
        return int(self._table.count_rows())

    def wait_indexed(self) -> float:
        config = self._index_kind(distance_type="l2", num_partitions=math.isqrt(self.count()))
        self._table.create_index("vector", config=config)
        self._table.wait_for_index(["vector_idx"], timedelta(seconds=WAIT_S))
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._effort = int(effort)

    def search(self, query: Rows) -> list[int]:
        asked = self._table.search(query).limit(K).nprobes(self._effort).select(["row", "_distance"])
        return asked.to_arrow()["row"].to_pylist()  # type: ignore[no-any-return]


class MilvusLite:
    """Milvus Lite over a local file, which pymilvus serves from a thread of this process."""

    index = "HNSW"
    address = ""
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("milvus-lite")
        milvus = import_module("pymilvus")
        self._client = client = milvus.MilvusClient(str(place.directory / "milvus.db"))
        stack.callback(client.close)
        schema = client.create_schema()
        schema.add_field("row", milvus.DataType.INT64, is_primary=True)
        schema.add_field("vector", milvus.DataType.FLOAT_VECTOR, dim=sift.DIMENSION)
        self._index = client.prepare_index_params()
        parameters = {"M": M, "efConstruction": EF_CONSTRUCTION}
        self._index.add_index("vector", index_type="HNSW", metric_type="L2", params=parameters)
        client.create_collection(COLLECTION, schema=schema, index_params=self._index)
        self._effort = EF[0]

    def insert(self, base: Rows) -> None:
        for first, rows in batches(base):
            self._client.insert(COLLECTION, [{"row": n, "vector": row} for n, row in enumerate(rows, first)])

    def count(self) -> int:
        return int(self._client.query(COLLECTION, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def wait_indexed(self) -> float:
        self._client.flush(COLLECTION)
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._effort = int(effort)

    def search(self, query: Rows) -> list[int]:
        parameters = {"metric_type": "L2", "params": {"ef": self._effort}}
        found = self._client.search(COLLECTION, [query], limit=K, search_params=parameters)
        return [int(hit["row"]) for hit in found[0]]


class Hnswlib:
    """A graph in memory; a row is in it when insert returns. All cores insert, one searches."""

    index = "HNSW"
    address = ""
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("hnswlib")
        self._index = import_module("hnswlib").Index(space="l2", dim=sift.DIMENSION)
        self._index.init_index(max_elements=place.rows, M=M, ef_construction=EF_CONSTRUCTION)

    def insert(self, base: Rows) -> None:
        for first, rows in batches(base):
            self._index.add_items(rows, np.arange(first, first + len(rows)))

    def count(self) -> int:
        return int(self._index.get_current_count())

    def wait_indexed(self) -> float:
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._index.set_ef(int(effort))

    def search(self, query: Rows) -> list[int]:
        return self._index.knn_query(query, k=K, num_threads=1)[0][0].tolist()  # type: ignore[no-any-return]


class Usearch:
    """A graph in memory; a row is in it when insert returns. All cores insert, one searches."""

    index = "HNSW"
    address = ""
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("usearch")
        self._index = import_module("usearch.index").Index(
            ndim=sift.DIMENSION, metric="l2sq", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
        )

    def insert(self, base: Rows) -> None:
        for first, rows in batches(base):
            self._index.add(np.arange(first, first + len(rows)), rows)

    def count(self) -> int:
        return len(self._index)

    def wait_indexed(self) -> float:
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._index.expansion_search = int(effort)

    def search(self, query: Rows) -> list[int]:
        return self._index.search(query, K, threads=1).keys.tolist()  # type: ignore[no-any-return]


# name: (adapter, the module that must be installed)
PEERS: dict[str, tuple[Callable[[ExitStack, Place], Peer], str]] = {
    "tidemark": (Tidemark, "tidemark"),
    "chroma": (Chroma, "chromadb"),
    "qdrant": (Qdrant, "qdrant_client"),
    "weaviate": (Weaviate, "weaviate"),
    "milvus-lite": (MilvusLite, "milvus_lite"),
    "lancedb": (Lance, "lancedb"),
    "hnswlib": (Hnswlib, "hnswlib"),
    "usearch": (Usearch, "usearch"),
}
# What a second process can insert into, and how, given the address.
WRITERS: dict[str, Callable[[str], Insert]] = {
    "tidemark": write_to_tidemark,
    "chroma": write_to_chroma,
    "qdrant": write_to_qdrant,
    "weaviate": write_to_weaviate,
}


def batches(base: Rows) -> Iterator[tuple[int, Rows]]:
    for first in range(0, len(base), BATCH):
        yield first, np.ascontiguousarray(base[first : first + BATCH])


def insert_all(insert: Insert, base: Rows) -> None:
    for first, rows in batches(base):
        insert(first, rows)


def start(stack: ExitStack, command: list[str], log: Any) -> None:
    """A child process that ends with the stack, and with us however we end."""
    import cli.die_with_parent as with_parent

    wrapper = [sys.executable, with_parent.__file__, str(os.getpid())]
    process = subprocess.Popen([*wrapper, *command], stdout=log, stderr=log)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)


def wait_for(asked: Callable[[], Any], what: str) -> Any:
    """What `asked` returns as soon as it is true."""
    deadline = time.perf_counter() + WAIT_S
    while not (answer := asked()):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{what}: not done after {WAIT_S:.0f} s")
        time.sleep(0.01)
    return answer


# -- measuring one peer, in a process of its own ---------------------------------------------------------------------


def measure(name: str, place: Place, seconds: float) -> Figures:
    data = sift.load(place.rows)
    with ExitStack() as stack:
        peer = PEERS[name][0](stack, place)
        figures: Figures = {"peer": name, "version": peer.version, "index": peer.index}
        figures |= fill(peer, data.base)
        figures |= tune(peer, data)
        latencies = search_for(peer, data.queries, seconds)
        idle = float(np.percentile(latencies, 99))
        figures |= {"p50_ms": float(np.median(latencies)), "p99_ms": idle, "qps": 1e3 / float(latencies.mean())}
        if peer.address:
            figures |= search_while_inserting(name, peer, data, seconds)
            figures["p99_while_inserting_over_idle"] = float(figures["p99_ms_while_inserting"]) / idle
    return figures


def fill(peer: Peer, base: Rows) -> Figures:
    """Insert all rows, and wait until they are searchable, then indexed."""
    peer.tune(max(peer.efforts))
    started = time.perf_counter()
    peer.insert(base)
    inserted = time.perf_counter()
    last, row = len(base) - 1, np.array(base[-1])
    wait_for(lambda: peer.count() > last and last in peer.search(row), "the last row inserted")
    searchable = time.perf_counter()
    indexed = peer.wait_indexed()
    return {
        "insert_seconds": inserted - started,
        "searchable_after_insert_seconds": searchable - inserted,
        "indexed_after_searchable_seconds": indexed - searchable,
        "searchable_per_s": len(base) / (searchable - started),
        "indexed_per_s": len(base) / (indexed - started),
    }


def tune(peer: Peer, data: sift.Sift) -> Figures:
    """Leave the peer with the least effort that reaches the recall, by bisection; RuntimeError if none does."""
    truth = [set(line) for line in data.ground_truth(K)[:TUNING_QUERIES].tolist()]
    recalls: dict[float, float] = {}

    def recall(effort: float) -> float:
        peer.tune(effort)
        hits = sum(len(near.intersection(peer.search(query))) for near, query in zip(truth, data.queries, strict=False))
        recalls[effort] = hits / (K * len(truth))
        return recalls[effort]

    found = bisect_left(peer.efforts, RECALL, key=recall)
    if found == len(peer.efforts):
        raise RuntimeError(f"recall is {max(recalls.values()):.3f} at most, {RECALL} was asked")
    effort = peer.efforts[found]
    peer.tune(effort)
    return {"effort": effort, "recall": recalls[effort]}


def search_for(peer: Peer, queries: Rows, seconds: float) -> NDArray[np.float64]:
    """Latencies in ms, one query at a time."""
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds
    while (before := time.perf_counter()) < deadline:
        peer.search(queries[len(latencies) % len(queries)])
        latencies.append((time.perf_counter() - before) * 1e3)
    return np.array(latencies)


def search_while_inserting(name: str, peer: Peer, data: sift.Sift, seconds: float) -> Figures:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as second:
        second.submit(os.getpid).result()  # started: what is measured is not the imports
        inserting = second.submit(insert_steadily, name, peer.address, len(data.base), seconds + 2 * INSERT_LEAD_S)
        time.sleep(INSERT_LEAD_S)
        latencies = search_for(peer, data.queries, seconds)
        per_s = inserting.result()
    return {"p99_ms_while_inserting": float(np.percentile(latencies, 99)), "inserted_per_s": per_s}


def insert_steadily(name: str, address: str, rows: int, seconds: float) -> float:
    """Insert further rows at a steady rate for a time; rows a second, fewer than asked when it takes no more."""
    more = sift.load(rows + extra_rows(seconds)).base[rows:]
    insert = WRITERS[name](address)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        due = min(int(elapsed * INSERT_RATE), len(more)) - done
        if due:
            insert(rows + done, np.ascontiguousarray(more[done : done + min(due, BATCH)]))
            done += min(due, BATCH)
        time.sleep(INSERT_BURST_S)
    return done / (time.perf_counter() - started)


def extra_rows(seconds: float) -> int:
    return int(INSERT_RATE * (seconds + 2 * INSERT_LEAD_S))


# -- the run ---------------------------------------------------------------------------------------------------------


def measure_apart(name: str, rows: int, url: str, seconds: float) -> Figures | str:
    """The figures of one peer from a process of its own, or why there are none."""
    if find_spec(PEERS[name][1]) is None:
        return f"{PEERS[name][1]} is not installed"
    with (
        tempfile.TemporaryDirectory(prefix="tidemark-peers-") as directory,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
    ):
        try:
            return process.submit(measure, name, Place(Path(directory), rows, url), seconds).result()
        except Exception as error:  # whatever goes wrong in one peer must not end the run
            return f"{type(error).__name__}: {error}".splitlines()[0]


def report(found: list[Figures], left_out: dict[str, str], rows: int) -> None:
    about = machine.describe(seed=0)
    print(f"\n{machine.heading(about)}; seed 0; SIFT {rows:,} x {sift.DIMENSION}, recall@{K} >= {RECALL}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for figures in found:
        print(f"| {' | '.join(_cell(figures.get(column, '')) for column in COLUMNS)} |")
    for name, why in left_out.items():
        print(f"\n{name} left out: {why}")
    RESULTS.parent.mkdir(exist_ok=True)
    document = {"machine": about, "rows": rows, "peers": found, "left_out": left_out}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else shown(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Tidemark beside its peers.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of searches, idle and while inserting")
    parser.add_argument("--only", default="", help=f"some of: {','.join(PEERS)}")
    parser.add_argument("--qdrant", default="", metavar="URL", help="a Qdrant that runs, such as http://127.0.0.1:6333")
    parser.add_argument("--weaviate", default="", metavar="URL", help="a Weaviate, such as http://127.0.0.1:8080")
    arguments = parser.parse_args()
    urls = {"qdrant": arguments.qdrant, "weaviate": arguments.weaviate}
    names = arguments.only.split(",") if arguments.only else list(PEERS)
    if unknown := set(names) - set(PEERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    os.environ.update(QUIET)
    sift.load(arguments.rows + extra_rows(arguments.seconds + 2 * INSERT_LEAD_S))
    sift.load(arguments.rows).ground_truth(K)
    found: list[Figures] = []
    left_out: dict[str, str] = {}
    for name in names:
        if not urls.get(name, "none needed"):
            left_out[name] = f"no address given (--{name} URL)"
            continue
        started = time.perf_counter()
        answer = measure_apart(name, arguments.rows, urls.get(name, ""), arguments.seconds)
        if isinstance(answer, str):
            left_out[name] = answer
        else:
            found.append(answer)
        sys.stderr.write(
            f"{name}: {answer if isinstance(answer, str) else 'done'}, {time.perf_counter() - started:.1f} s\n"
        )
    report(found, left_out, arguments.rows)


if __name__ == "__main__":
    main()
