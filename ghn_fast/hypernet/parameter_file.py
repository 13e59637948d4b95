"""Predicted parameters in a safetensors file that says where they come from."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import nn

from ghn_fast._version import __version__
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.hypernet.report import PredictionReport
from ghn_fast.utils.files import write_atomically
from ghn_fast.utils.json_files import to_json


def provenance(
    report: PredictionReport,
    *,
    model_name: str | None = None,
    ghn: GHN | None = None,
    hypernetwork: str | None = None,
) -> dict[str, str]:
    """The metadata of a file of predicted parameters.

    Args:
        report: What the prediction said.
        model_name: What the network is called.
        ghn: The hypernetwork, whose configuration is written down.
        hypernetwork: Its name or path, as in :func:`ghn_fast.from_pretrained`.

    Returns:
        Texts by name: ``format`` (``pt``), ``generator`` (package and version), ``model``,
        ``hypernetwork``, ``hypernetwork_config`` (JSON), ``report`` (JSON of
        :class:`PredictionReport`). What is not given is left out.
    """
    found = {
        "format": "pt",
        "generator": f"ghn_fast {__version__}",
        "model": model_name,
        "hypernetwork": hypernetwork,
        "hypernetwork_config": None if ghn is None else json.dumps(ghn.config.to_dict()),
        "report": to_json(report),
    }
    return {name: value for name, value in found.items() if value is not None}


def parameter_bytes(model: nn.Module, metadata: dict[str, str]) -> bytes:
    """The parameters of a network in the safetensors format, shared ones once.

    Args:
        model: The network, on any device.
        metadata: Texts by name, see :func:`provenance`.

    Raises:
        ValueError: If a parameter has no values.
    """
    from safetensors.torch import save

    for name, value in model.named_parameters():
        if value.is_meta:
            raise ValueError(
                f"model: parameter '{name}' is on the meta device and has no values, needs "
                "parameters with values; call model.to_empty(device='cpu') before the prediction"
            )
    state = {name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}
    return save(state, metadata)


def save_parameters(
    path: str | os.PathLike[str],
    model: nn.Module,
    report: PredictionReport,
    *,
    model_name: str | None = None,
    ghn: GHN | None = None,
    hypernetwork: str | None = None,
) -> None:
    """Write the parameters of a network, and where they come from, atomically.

    ``model.load_state_dict(safetensors.torch.load_file(path), strict=False)`` reads them: buffers,
    which are not predicted, are not in the file. ``safetensors.safe_open(path, "pt").metadata()``
    gives the rest.

    Args:
        path: The file; its folder is made if need be.
        model, report: The network and what its prediction said.
        model_name, ghn, hypernetwork: As in :func:`provenance`.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a parameter of the network has no values (meta device).
    """
    metadata = provenance(report, model_name=model_name, ghn=ghn, hypernetwork=hypernetwork)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, parameter_bytes(model, metadata))
