"""From a model spec to a `Clip`: strictly, in float32, frozen, in eval mode.

open_clip builds the towers; the weights are put in here, because open_clip only warns where a file
is missing or an activation does not fit, and resizes position embeddings where a size does not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from zsrobust.adaptations.prompts import prompt_facts
from zsrobust.errors import EnvironmentFault, UserError, unknown_name
from zsrobust.hashing import sha256_json, sha256_tensors
from zsrobust.models.adapters import PROMPTS_NAME, put_prompts, take_out_factors
from zsrobust.models.public import public_hub
from zsrobust.models.spec import CONFIG_NAME, ModelSpec, parse_spec
from zsrobust.models.weights import (
    fill,
    first_line,
    read_file,
    strip_prefix,
    tensor_table,
    unreadable,
)
from zsrobust.preprocess import Preprocess

if TYPE_CHECKING:
    from zsrobust.models.classifier import ImageEncoder

WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
ADAPTATION_NAME = "adaptation.json"
HEAD_NAME = "head.safetensors"
ADAPTATION_FORMAT = 1
_TEXT_CHUNK = 256
# Its exp is 5e8: no logit of float32 means anything there.
_LARGEST_LOGIT_SCALE = 20.0


@dataclass(eq=False)
class Clip:
    """A loaded model.

    Args:
        spec: what it was loaded from.
        name: a short name for tables.
        model: open_clip's CLIP, CustomTextCLIP or CoCa; eval mode, float32, every parameter frozen.
        tokenizer: list of N texts -> (N, context length) int64.
        preprocess: the image rule, from the model's own config.
        logit_scale: exp of the learned scale, about 100 for released models; frozen.
        config: {"model_cfg": ..., "preprocess_cfg": ...}, what open_clip_config.json holds.
    """

    spec: str
    name: str
    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    preprocess: Preprocess
    logit_scale: float
    config: dict[str, Any]
    _fingerprint: tuple[Any, str] | None = field(default=None, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of every tensor and of the architecture, activation included, prompts too.

        Computed when first asked for, and again after a tensor was written to.
        """
        state = self.model.state_dict(keep_vars=True)
        tensors = tuple(
            (id(tensor), tensor._version, tensor.data_ptr()) for tensor in state.values()
        )
        facts = prompt_facts(self.model)
        seen = (tensors, str(facts))
        if self._fingerprint is None or self._fingerprint[0] != seen:
            architecture = essential_config(self.config["model_cfg"])
            content: dict[str, Any] = {
                "tensors": sha256_tensors(state),
                "architecture": architecture,
            }
            if facts:  # what prompts have beside their tensors; a plain model hashes as ever
                content["prompts"] = facts
            self._fingerprint = (seen, sha256_json(content))
        return self._fingerprint[1]

    def to(self, device: str | torch.device) -> Clip:
        """Move the model in place, as `nn.Module.to` does, and return this Clip.

        Raises:
            UserError: if there is no such device here.
        """
        self.model.to(_device(device))
        return self

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return text features (N, D), float32, not normalised, without gradient.

        Raises:
            UserError: if there are no texts, or a token lies beyond the tower's vocabulary.
        """
        if not texts:
            raise UserError("no texts to encode; give at least one.")
        model = cast(Any, self.model)
        table = getattr(getattr(model, "text", model), "token_embedding", None)
        chunks = []
        with torch.no_grad():
            for start in range(0, len(texts), _TEXT_CHUNK):
                tokens = self.tokenizer(list(texts[start : start + _TEXT_CHUNK]))
                if isinstance(table, nn.Embedding) and int(tokens.max()) >= table.num_embeddings:
                    raise UserError(
                        f"{self.spec}: token {int(tokens.max())} lies beyond the text tower's "
                        f"{table.num_embeddings}; its config names the wrong tokenizer."
                    )
                features = model.encode_text(tokens.to(self.device), normalize=False)
                chunks.append(features.float())
        return torch.cat(chunks)

    def image_encoder(self, precision: str = "fp32") -> ImageEncoder:
        """Return images in [0, 1] -> features; it shares this model's parameters.

        Args:
            precision: "fp32" or "bf16" (autocast of the tower; features stay float32).
        """
        from zsrobust.models.classifier import ImageEncoder

        return ImageEncoder(self.model, self.preprocess, precision)


def load_clip(spec: str | ModelSpec, device: str | torch.device = "cpu") -> Clip:
    """Load any model spec.

    Args:
        spec: see `zsrobust.models.spec`.
        device: where to put it.

    Raises:
        UserError: if the spec is wrong, or its files are damaged, incomplete or do not fit: every
            tensor is used, none is missing, and the activation fits the weights.
        EnvironmentFault: if something has to be downloaded and cannot be.
    """
    parsed = spec if isinstance(spec, ModelSpec) else parse_spec(spec)
    target = _device(device)
    return _load(parsed).to(target)


def load_unmerged(spec: str, device: str | torch.device = "cpu") -> Clip:
    """Load a LoRA hardening with its factors beside the weights that it started from, as in training.

    Its features are those of `load_clip(spec)` but for rounding. The factors alone require a gradient; what
    trains them on merges them with `zsrobust.adaptations.lora.merge`.

    Args:
        spec: run:DIR.
        device: where to put it.

    Raises:
        UserError: as `load_clip`, and if it is no run with adaptation `lora`, or its factors are missing,
            damaged or of another run.
        EnvironmentFault: if a file cannot be read.
    """
    parsed, target = parse_spec(spec), _device(device)
    if parsed.kind != "run":
        raise UserError(f"{spec}: only what a hardening wrote has factors; give a spec run:DIR.")
    clip, folder = _load(parsed), cast(Path, parsed.folder) / "model"
    take_out_factors(clip.model, read_adaptation(folder), folder)
    return clip.to(target)


def new_clip(config: Mapping[str, Any], seed: int, name: str) -> Clip:
    """Build a model with random weights, a function of `config` and `seed` alone; not frozen.

    torch's global random state is left as it was.

    Args:
        config: {"model_cfg": ..., "preprocess_cfg": ...}, as open_clip_config.json holds it.
        seed: of the weights.
        name: of the model, in tables and messages.

    Raises:
        UserError: if open_clip cannot build it, or a key of the image rule is unknown.
        EnvironmentFault: if its tokenizer or text tower needs files that cannot be had.
    """
    from open_clip.transform import PreprocessCfg

    known = [f.name for f in fields(cast(Any, PreprocessCfg))]
    for key in config.get("preprocess_cfg", {}):
        if key not in known:
            raise unknown_name(f"key of {name}'s preprocess_cfg", key, known)
    with tempfile.TemporaryDirectory() as folder:
        # The way of a folder's config, so that what is built is what its saved folder will build.
        path = Path(folder) / CONFIG_NAME
        path.write_text(json.dumps(dict(config)), encoding="utf-8")
        checked = _read_config(path)
        spec = ModelSpec("local_dir", name, name, folder=Path(folder))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # noqa: TID251 - open_clip draws from the global stream, forked here
            model = _build(name, f"local-dir:{folder}")
        tokenizer = _tokenizer(spec, f"local-dir:{folder}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    clip = _finish(spec, model, checked["model_cfg"], tokenizer)
    for parameter in trained:  # all but fixed position embeddings
        parameter.requires_grad_(True)
    return clip


def _load(spec: ModelSpec) -> Clip:
    match spec.kind:
        case "builtin":
            return _load_builtin(spec)
        case "hub":
            return _load_hub(spec)
        case "local_dir" | "named":
            folder = cast(Path, spec.folder)
            if (folder / PROMPTS_NAME).is_file():
                raise UserError(
                    f"{spec.text}: beside the weights stand prompts ({PROMPTS_NAME}), without which it is "
                    f"another model; write run:{folder.parent}."
                )
            return _load_folder(spec, folder)
        case "run":
            return _load_run(spec)
        case "foreign":
            return _load_foreign(spec)


def _load_builtin(spec: ModelSpec) -> Clip:
    import open_clip

    cfg = open_clip.get_pretrained_cfg(spec.arch, spec.tag)
    with _downloads(f"the weights of {spec.text}"):
        weights = Path(open_clip.download_pretrained(cfg))
    rule = {k: cfg[k] for k in ("mean", "std", "interpolation", "resize_mode") if k in cfg}
    model = _build(spec.text, spec.arch, force_preprocess_cfg=rule)
    _put_weights(model, weights, spec.text)
    return _finish(spec, model, open_clip.get_model_config(spec.arch), _tokenizer(spec, spec.arch))


def _load_hub(spec: ModelSpec) -> Clip:
    from open_clip.pretrained import download_pretrained_from_hf

    known = public_hub(spec.repo)
    if known is not None and known.refused:
        raise UserError(f"{spec.text} cannot be loaded: {known.refused}.")
    with _downloads(f"the files of {spec.text}"):
        config_file = Path(download_pretrained_from_hf(spec.repo, filename=CONFIG_NAME))
        config = _read_config(config_file)
        _check_activation(config["model_cfg"], known.quick_gelu if known else None, spec.text)
        weights = Path(download_pretrained_from_hf(spec.repo))
    named = config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name")
    model = _build(spec.text, f"local-dir:{config_file.parent}")
    _put_weights(model, weights, spec.text)
    # A tokenizer of its own is fetched by name; the ordinary one needs the config alone.
    source = f"hf-hub:{spec.repo}" if named else f"local-dir:{config_file.parent}"
    return _finish(spec, model, config["model_cfg"], _tokenizer(spec, source))


def _load_folder(spec: ModelSpec, folder: Path) -> Clip:
    config = _read_config(folder / CONFIG_NAME)
    weights = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: no weights; put them there as {' or '.join(WEIGHT_NAMES)}.")
    model = _build(spec.text, f"local-dir:{folder}")
    _put_weights(model, weights, str(weights))
    return _finish(spec, model, config["model_cfg"], _tokenizer(spec, f"local-dir:{folder}"))


def _load_run(spec: ModelSpec) -> Clip:
    folder = cast(Path, spec.folder) / "model"
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"{spec.text}: no model in {folder}: {no_model_because(spec)}.")
    record = read_adaptation(folder)
    clip = _load_folder(spec, folder)
    put_prompts(clip.model, record, folder)
    return clip


def _load_foreign(spec: ModelSpec) -> Clip:
    from zsrobust.models.foreign import lay_over

    clip = _load(cast(ModelSpec, spec.base))
    lay_over(clip, cast(Path, spec.file))
    clip.spec, clip.name = spec.text, spec.name
    return clip


def no_model_because(spec: ModelSpec) -> str:
    """Return why a run's folder holds no model, and what to do."""
    folder = cast(Path, spec.folder)
    if (folder / "recipe.json").is_file():
        return "the hardening has not finished; start its command again, it goes on"
    return "the folder is no hardening's; give the one that zsrobust harden wrote"


def read_adaptation(folder: Path) -> dict[str, Any]:
    """Return `adaptation.json` of a hardened model's folder.

    Raises:
        UserError: if it is missing or damaged, its format is unknown, or its adaptation is.
    """
    from zsrobust.adaptations import ADAPTATIONS

    path = folder / ADAPTATION_NAME
    record = _read_json(path)
    if record.get("format") != ADAPTATION_FORMAT:
        raise UserError(
            f"{path}: format {record.get('format')!r} is unknown, this version reads "
            f"{ADAPTATION_FORMAT}; install the version that wrote it."
        )
    name = record.get("adaptation")
    if not isinstance(name, str) or name not in ADAPTATIONS:
        raise unknown_name("adaptation", str(name), ADAPTATIONS, f"It stands in {path}.")
    source = record.get("source")
    # Without it nobody would know which set is no unseen one (traps 45).
    if source is not None and (
        not isinstance(source, dict)
        or not all(isinstance(value, str | None) for value in source.values())
    ):
        raise UserError(
            f"{path}: 'source' must be a table of texts, got {source!r}; fetch or write it again."
        )
    return record


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path.parent}: no {path.name}; the folder is no model, or not a whole one."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON ({first_line(error)}); fetch or write it again."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: a table is expected, not {type(value).__name__}; fetch or write it again."
        )
    return value


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    model_cfg = config.get("model_cfg")
    mend = "bring the config that belongs to the weights"
    if not isinstance(model_cfg, dict):
        raise UserError(f"{path}: no table 'model_cfg' in it, so it is not open_clip's; {mend}.")
    absent = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in model_cfg]
    if absent:
        raise UserError(f"{path}: 'model_cfg' lacks {', '.join(absent)}; {mend}.")
    tables = [model_cfg["vision_cfg"], model_cfg["text_cfg"], config.get("preprocess_cfg") or {}]
    for name, table in zip(("vision_cfg", "text_cfg", "preprocess_cfg"), tables, strict=True):
        if not isinstance(table, dict):
            raise UserError(f"{path}: {name} must be a table, got {table!r}; {mend}.")
    if not isinstance(model_cfg.get("quick_gelu", False), bool):  # "no" would be taken for true
        raise UserError(
            f"{path}: quick_gelu must be true or false, got {model_cfg['quick_gelu']!r}; {mend}."
        )
    return config


def _wrong_values(config: Mapping[str, Any]) -> str:
    """Return which values of a config that open_clip cannot build are not of its types; "" if all are."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    found: dict[str, str] = {}
    for name, kind in (
        ("embed_dim", int),
        ("vision_cfg", CLIPVisionCfg),
        ("text_cfg", CLIPTextCfg),
    ):
        try:
            TypeAdapter(kind).validate_json(json.dumps(config.get(name)), strict=True)
        except ValidationError as error:
            for mistake in error.errors():  # of a union there is one for each of its types
                if mistake["input"] is None:  # open_clip's own configs say null for several of them
                    continue
                place = ".".join([name, *(str(part) for part in mistake["loc"][:1])])
                words = mistake["msg"].replace("Input should be", "must be")
                found.setdefault(place, f"{place} {mistake['input']!r}: {words}")
        except PydanticUserError:  # a type that pydantic does not know
            continue
    return "; ".join(list(found.values())[:3])


def _build(what: str, source: str, **settings: Any) -> nn.Module:
    """Let open_clip build the towers, without any weights."""
    import open_clip

    with _quiet():
        try:
            return cast(
                nn.Module,
                open_clip.create_model(
                    source, load_weights=False, pretrained_text=False, **settings
                ),
            )
        except MemoryError:
            raise
        except Exception as error:  # a config can break open_clip anywhere
            config = open_clip.get_model_config(source) or {}
            text_tower = config.get("text_cfg", {}).get("hf_model_name")
            if text_tower:
                raise EnvironmentFault(
                    f"{what}: its text tower {text_tower!r} needs the transformers package and "
                    f"files from the hub ({first_line(error)}); install it and fetch them first."
                ) from error
            cause = _wrong_values(config) or f"{type(error).__name__}: {first_line(error)}"
            raise UserError(
                f"{what}: open_clip cannot build this config ({cause}); mend or replace it."
            ) from error


def _put_weights(model: nn.Module, path: Path, what: str) -> None:
    """Fill the whole model from a file, in any of open_clip's own forms."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    found = read_file(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    tensors = strip_prefix(tensor_table(found, path), "module.")
    tensors = convert_state_dict(model, tensors)
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name, place in model.state_dict().items():
        # Releases differ in whether the scale and the bias are (), or (1,).
        if name in ("logit_scale", "logit_bias") and name in tensors and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(place.shape)
    fill(model, tensors, what, "config and weights do not belong together")


def _finish(
    spec: ModelSpec,
    model: nn.Module,
    model_cfg: dict[str, Any],
    tokenizer: Callable[[list[str]], Tensor],
) -> Clip:
    model.eval().requires_grad_(False)
    rule = cast(Any, model).visual.preprocess_cfg
    preprocess_cfg = {k: list(v) if isinstance(v, tuple) else v for k, v in rule.items()}
    learned = float(cast(Tensor, model.logit_scale).double().item())
    scale = math.exp(min(learned, _LARGEST_LOGIT_SCALE))
    if not 0.0 < scale < math.exp(_LARGEST_LOGIT_SCALE):
        raise UserError(
            f"{spec.text}: its logit scale is exp({learned:g}), released models have about 100 = "
            "exp(4.6); the weights are damaged: fetch or write them again."
        )
    return Clip(
        spec=spec.text,
        name=spec.name,
        model=model,
        tokenizer=tokenizer,
        preprocess=Preprocess.from_config(preprocess_cfg, spec.text),
        logit_scale=scale,
        config={"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg},
    )


def _tokenizer(spec: ModelSpec, source: str) -> Callable[[list[str]], Tensor]:
    import open_clip

    with _quiet():
        try:
            return cast(Callable[[list[str]], Tensor], open_clip.get_tokenizer(source))
        except Exception as error:  # whatever keeps its files away
            raise EnvironmentFault(
                f"{spec.text}: its tokenizer cannot be had ({first_line(error)}); it needs the "
                "transformers package and its files, from the hub or in the model's own folder."
            ) from error


def check_quick_gelu(
    model_cfg: Mapping[str, Any], expected: bool | None, what: str, mend: str
) -> None:
    """Refuse a config whose activation is not the one that the weights were trained with.

    Args:
        model_cfg: open_clip's.
        expected: whether the weights need QuickGELU; None where nobody knows.
        what: names the weights.
        mend: what to do.

    Raises:
        UserError: if they differ (traps 9).
    """
    has = bool(model_cfg.get("quick_gelu", False))
    if expected is not None and has != expected:
        words = ("QuickGELU", "GELU") if expected else ("GELU", "QuickGELU")
        raise UserError(f"{what}: trained with {words[0]}, the model builds {words[1]}; {mend}.")


def _check_activation(model_cfg: Mapping[str, Any], expected: bool | None, what: str) -> None:
    wanted = "true" if expected else "false"
    mend = f'copy the folder, write "quick_gelu": {wanted} into model_cfg, and use local-dir:PATH'
    check_quick_gelu(model_cfg, expected, what, mend)


def essential_config(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config shapes the function: entries at open_clip's defaults are left out.

    So a config that states a default and one that does not hash alike, and a default added by a
    later open_clip changes no fingerprint.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    kept: dict[str, Any] = {}
    for name, value in model_cfg.items():
        if name in ("vision_cfg", "text_cfg") and isinstance(value, Mapping):
            table = CLIPVisionCfg if name == "vision_cfg" else CLIPTextCfg
            defaults = {f.name: f.default for f in fields(cast(Any, table))}
            # Whether a tower was once started from pretrained weights no longer matters.
            skip = ("timm_model_pretrained", "hf_model_pretrained")
            kept[name] = {
                k: v
                for k, v in value.items()
                if k not in skip and not (k in defaults and defaults[k] == v)
            }
        elif value not in (None, False):
            kept[name] = value
    return kept


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's log off the terminal, and its random weights off the global stream."""
    root = logging.getLogger()
    handler = logging.NullHandler()  # logging.warning() would install a handler of its own
    before = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


@contextlib.contextmanager
def _downloads(what: str) -> Iterator[None]:
    """Turn whatever a download raises into one line that says how to bring the files."""
    try:
        with _quiet():
            yield
    except (UserError, EnvironmentFault, MemoryError):
        raise
    except Exception as error:
        raise EnvironmentFault(
            f"cannot fetch {what}: {first_line(_root(error))}; check name and network, or copy a "
            f"folder with {CONFIG_NAME} and {WEIGHT_NAMES[0]} from a machine that has them and "
            "use local-dir:PATH."
        ) from error


def _root(error: BaseException) -> BaseException:
    """Return what started a chain of errors: "name resolution failed", not "file not found"."""
    while error.__cause__ or error.__context__:
        error = cast(BaseException, error.__cause__ or error.__context__)
    return error


def _device(device: str | torch.device) -> torch.device:
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        kind, count = str(device).partition(":")[0], torch.cuda.device_count()
        if kind == "cuda":
            cause = f"{count} CUDA devices are here" if count else "no CUDA device is here"
        else:
            cause = "torch cannot use it"
        raise UserError(
            f"no device {str(device)!r} here ({cause}); name another, cpu is always there."
        ) from error
    return wanted
