"""Checkpoints on the Hugging Face Hub: find them in the local cache, or download them to it."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from latentrt.runtime.errors import CheckpointError

from .weight_files import VARIANTS, consistent

_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
_COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")
_SMALL = (".json", ".txt")
_TOKENIZERS = ("scheduler", "tokenizer", "tokenizer_2")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `org/name` or `org/name@revision`."""
    return _ID.fullmatch(text) is not None


def folder_from_hub(hub_id: str, *, allow_pickle: bool) -> Path:
    """The checkpoint's folder in the Hub's cache, after a download of the files that an export reads.

    Without a network, or with HF_HUB_OFFLINE=1, uses the cache as it is. Raises `CheckpointError` if the checkpoint is
    neither in the cache nor on the Hub.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    match = _ID.fullmatch(hub_id)
    assert match is not None
    repo, revision = match["repo"], match["revision"]
    try:
        files = HfApi().list_repo_files(repo, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            f"{hub_id} is not a local path, and is not on the Hub or not accessible to you: check the name, accept the "
            "licence on its page, and log in with: hf auth login"
        ) from error
    except Exception as error:  # no network: the exception depends on the version of the Hub's client
        try:
            return Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            raise CheckpointError(
                f"{hub_id} is not a local path, it is not in the Hub's cache, and the Hub cannot be reached "
                f"({type(error).__name__}). Download it with network access, or pass a folder or a file."
            ) from error
    wanted = needed_files(files, allow_pickle=allow_pickle)
    return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))


def needed_files(files: Iterable[str], *, allow_pickle: bool) -> list[str]:
    """The files of a repository that an export reads: configs, tokenizers, and one variant of the weights."""
    files = list(files)
    if "model_index.json" not in files:  # one component by itself, such as a ControlNet
        variants = _variants([name for name in files if "/" not in name], "safetensors")
        if variants:
            return ["config.json", *consistent({"": variants})[""]]
    needed = [name for name in files if name == "model_index.json"]
    for name in files:
        path = PurePosixPath(name)
        if len(path.parts) == 2 and path.suffix in _SMALL:
            folder = path.parts[0]
            if folder in _TOKENIZERS or (folder in _COMPONENTS and path.name == "config.json"):
                needed.append(name)
    found = {}
    for part in _COMPONENTS:
        inside = [name for name in files if str(PurePosixPath(name).parent) == part]
        variants = _variants(inside, "safetensors") or (_variants(inside, "bin") if allow_pickle else {})
        if variants:
            found[part] = variants
    return [*needed, *(name for names in consistent(found).values() for name in names)]


def _variants(files: Iterable[str], suffix: str) -> dict[str | None, list[str]]:
    """Variant -> its weights, with the index of their shards."""
    stem = r"(model|pytorch_model|diffusion_pytorch_model)"
    variants = {}
    for variant in VARIANTS:
        infix = rf"\.{variant}" if variant else ""
        weights = rf"{stem}{infix}(-\d+-of-\d+)?\.{suffix}"
        index = rf"{stem}({infix}\.{suffix}\.index|\.{suffix}\.index{infix})\.json"
        found = [name for name in files if re.fullmatch(f"{weights}|{index}", PurePosixPath(name).name)]
        if found:
            variants[variant] = found
    return variants
