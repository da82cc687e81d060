"""The stores by name: how each is made, and how a second process inserts into it."""

from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.peers.chroma import Chroma, write_to_chroma
from benchmarks.peers.graphs import Hnswlib, Usearch
from benchmarks.peers.lance import Lance
from benchmarks.peers.milvus_lite import MilvusLite
from benchmarks.peers.peer import FilteredPeer, Insert, Peer, Place
from benchmarks.peers.qdrant import Qdrant, write_to_qdrant
from benchmarks.peers.tidemark import Tidemark, write_to_tidemark
from benchmarks.peers.weaviate import Weaviate, write_to_weaviate

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
# Who is asked with conditions as well.
FILTERED: dict[str, Callable[[ExitStack, Place], FilteredPeer]] = {
    "tidemark": Tidemark,
    "chroma": Chroma,
    "lancedb": Lance,
}
