"""What a run trains and is measured on. A data set is one small file here and a line in `registry.py`."""

from experiments.datasets.dataset import Dataset, KnowledgeBaseSource, ensure_knowledge_bases
from experiments.datasets.registry import load_dataset
from retrieval_actors.build import EMBEDDERS

__all__ = ["EMBEDDERS", "Dataset", "KnowledgeBaseSource", "ensure_knowledge_bases", "load_dataset"]
