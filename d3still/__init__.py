"""d3still: asymmetric image retrieval, its distillation baselines and their +ACD variants."""

__version__ = "0.1.0"
