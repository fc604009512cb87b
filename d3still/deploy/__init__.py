"""From a trained run to a search that answers: export, single-image embedding, index, top-k.

What needs FAISS, ONNX, onnxruntime or safetensors imports them when it is called, and says what to install
where they are missing (requirements-deploy.txt).
"""

from d3still.deploy.build import IndexBuilder
from d3still.deploy.embedder import Embedder
from d3still.deploy.export import Export, export_network
from d3still.deploy.gallery import Gallery, Match
from d3still.deploy.index import GalleryIndex
from d3still.deploy.kinds import KINDS, IndexOptions
from d3still.deploy.listing import GalleryImage
from d3still.deploy.network_files import open_network, open_networks, read_safetensors
from d3still.deploy.page import write_page
from d3still.deploy.runners import cost_table, costs
from d3still.deploy.store import Ranks, torchrun_ranks

__all__ = [
    "KINDS",
    "Embedder",
    "Export",
    "Gallery",
    "GalleryImage",
    "GalleryIndex",
    "IndexBuilder",
    "IndexOptions",
    "Match",
    "Ranks",
    "cost_table",
    "costs",
    "export_network",
    "open_network",
    "open_networks",
    "read_safetensors",
    "torchrun_ranks",
    "write_page",
]
