"""A cluster as a YAML file has it: what its GPUs are, and how much of their peak is reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, ValidationError, model_validator

from masters.errors import RecipeError
from masters.recipe_errors import dotted, nearest, short
from masters.recipe_parts import Count, NotNegative, Positive, Precision, Section

SHIPPED = Path(__file__).parents[1] / "clusters"


class Assumed(Section):
    """A number that no data sheet has."""

    model_config = ConfigDict(allow_inf_nan=False)

    value: NotNegative
    source: str = "assumed"
    """Where it was measured or published; assumed: nowhere."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        """A bare number is one that is assumed."""
        return {"value": value} if isinstance(value, (int, float)) else value


class Efficiency(Section):
    """How much of the peak is reached, and what passes cost whatever they compute."""

    train: Assumed
    """Share of the peak in forward and backward passes of the student."""
    forward: Assumed
    """Share of the peak in passes without gradient: teacher, reference."""
    generate: Assumed
    """The same in generating, where many rows are read and go on together."""
    head: Assumed
    """Share of the peak in scoring tokens: output heads, divergence, softmax."""
    decode: Assumed
    """Share of the memory's bandwidth in generating, where that is what bounds it."""
    layer_seconds: Assumed
    """What a layer's pass costs beside its arithmetic (launches, Python)."""
    pass_seconds: Assumed
    """What a forward pass costs beside its layers, a step of decoding among them."""
    sample_seconds: Assumed
    """Choosing a token: for each logit of each row."""
    vllm_share: Assumed = Assumed(value=0.1)
    """Of those three, what vLLM has (graphs captured beforehand, a sampler of its own)."""
    question_seconds: Assumed
    """Reading, encoding and bookkeeping of a question, where it is not hidden behind a pass."""
    patch_seconds: Assumed
    """The same for each patch of its pictures: decoding and resizing them."""
    row_seconds: Assumed
    """Storing and judging a response by rule."""
    update_seconds: Assumed
    """Clipping and AdamW: for each trained parameter, of a step."""
    mask_seconds: Assumed
    """Thresholds: for each weight of a matrix."""
    matrix_seconds: Assumed
    """The same for each matrix."""
    stage_seconds: Assumed
    """Opening a stage, beside reading its weights."""
    link: Assumed = Assumed(value=0.7)
    """Share of the link's bandwidth that sharding reaches."""
    reserved_gb: Assumed = Assumed(value=1.5)
    """Memory that the driver and the allocator take of each GPU."""
    usable: Assumed = Assumed(value=0.95)
    """Share of the memory that can be filled: the rest is lost to fragments."""


class Tflops(Section):
    """Peak of dense matrix products, in 1e12 operations a second."""

    model_config = ConfigDict(allow_inf_nan=False)

    bf16: Positive
    fp32: Positive

    def of(self, precision: Precision) -> float:
        """Operations a second."""
        return 1e12 * (self.bf16 if precision == "bf16" else self.fp32)


class Cluster(Section):
    """GPUs of one kind. ``gb`` is 1e9 bytes."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: the machine's processor counts as its GPU, by processor time of one thread."""
    gpus: Count
    gpus_per_node: Count = 8
    memory_gb: Positive
    """Of each GPU."""
    bandwidth_gb_s: Positive
    """Of a GPU's own memory."""
    tflops: Tflops
    node_gb_s: Positive
    """From a GPU to the others of its node, in one direction."""
    network_gb_s: Positive
    """The same between nodes, for each GPU."""
    host_gb_s: Positive
    """From the host's memory to a GPU."""
    disk_gb: Positive
    """That all nodes share."""
    disk_gb_s: Positive
    """Read by each node."""
    source: str = ""
    """Where the figures of the hardware are from."""
    efficiency: Efficiency

    @model_validator(mode="after")
    def _whole_nodes(self) -> Cluster:
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ValueError(
                f"{self.gpus} GPUs in nodes of {self.gpus_per_node}; expected fewer than a node "
                "has, or whole nodes"
            )
        for name in (
            "train",
            "forward",
            "generate",
            "head",
            "decode",
            "link",
            "usable",
            "vllm_share",
        ):
            value = getattr(self.efficiency, name).value
            if not 0 < value <= 1:
                raise ValueError(f"efficiency.{name} is {value}; expected a share above 0, up to 1")
        return self

    @property
    def bytes(self) -> float:
        """What can be filled of a GPU's memory."""
        return 1e9 * self.memory_gb * self.efficiency.usable.value

    def sizes(self) -> list[int]:
        """How many of the GPUs one job may take: some of a node, or whole nodes; all at last."""
        of_a_node = range(1, min(self.gpus, self.gpus_per_node) + 1)
        nodes = range(2 * self.gpus_per_node, self.gpus + 1, self.gpus_per_node)
        return [*of_a_node, *nodes]


def shipped_clusters() -> list[str]:
    """Names of the clusters that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_cluster(path_or_name: str | Path, *, gpus: int | None = None) -> Cluster:
    """A cluster from a YAML file, or a shipped one by its name.

    Args:
        gpus: how many instead of the file's.

    Raises:
        RecipeError: says the file, the key, what was got and what was expected.
    """
    path = _find(str(path_or_name))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path}: is no mapping; expected name, gpus, memory_gb ... as in {SHIPPED}"
        )
    if gpus is not None:
        content["gpus"] = gpus
    try:
        return Cluster.model_validate(content)
    except ValidationError as error:
        raise RecipeError("\n".join(_lines(path, error))) from None


def _find(text: str) -> Path:
    if text.endswith((".yaml", ".yml")) or "/" in text:
        if not Path(text).is_file():
            raise RecipeError(
                f"{text}: no such file; shipped clusters: {', '.join(shipped_clusters())}"
            )
        return Path(text)
    names = shipped_clusters()
    if text not in names:
        raise RecipeError(
            f"no cluster is called {text!r}{nearest(text, names) or '.'} Shipped: "
            f"{', '.join(names)}; or give the path of a .yaml file"
        )
    return SHIPPED / f"{text}.yaml"


def _lines(path: Path, error: ValidationError) -> list[str]:
    """One line for each mistake."""
    found = []
    for detail in error.errors(include_url=False):
        context = detail.get("ctx") or {}
        at = dotted(detail["loc"])
        if detail["type"] == "unknown_key":
            key, legal = context["key"], context["legal"]
            where = f"{at}.{key}" if at else key
            said = f"is not a key{nearest(key, legal) or '.'} Expected one of: {', '.join(legal)}"
            found.append(f"{path}: {where} {said}")
        elif detail["type"] == "missing":
            found.append(f"{path}: {at} is missing")
        elif detail["type"] == "value_error":
            found.append(f"{path}: {context['error']}")
        else:
            said = (
                detail["msg"].lower().replace("input should be", "expected").replace("valid ", "")
            )
            found.append(f"{path}: {at} is {short(detail['input'])}; {said}")
    return found
