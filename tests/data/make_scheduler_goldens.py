"""Record what diffusers' schedulers compute, for tests that replay plans without diffusers.

    PYTHONPATH=.:tests python tests/data/make_scheduler_goldens.py

Writes tests/data/schedulers.npz: for every case of `support.scheduler_cases`, in its order, the timesteps, and of each
call's model input and clean prediction one projection and the largest absolute value. `about` names the versions.
"""

import json
import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
from support.scheduler_cases import CLASSES, all_cases, computed_wide, lost_by_diffusers, rejected_by_diffusers
from support.scheduler_reference import diffusers_scheduler, run_diffusers
from support.scheduler_replay import FILE, case_key, projected

COMMAND = "PYTHONPATH=.:tests python tests/data/make_scheduler_goldens.py"


def main() -> None:
    """Run diffusers on every case that it does not reject."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arrays = {}
    for class_name in CLASSES:
        keys, lengths, timesteps, values = [], [], [], []
        for config, steps, eta in all_cases(class_name):
            if rejected_by_diffusers(config, steps) or lost_by_diffusers(config, steps):
                continue
            scheduler = diffusers_scheduler(config)
            scheduler.set_timesteps(steps)
            run = run_diffusers(scheduler, eta, wide=computed_wide(config))
            keys.append(case_key(config, steps, eta))
            lengths.append(len(run["timesteps"]))
            timesteps.append(run["timesteps"].astype(np.float64))
            values.append(projected(run))
        arrays[f"{class_name}.keys"] = np.array(keys, np.uint32)
        arrays[f"{class_name}.lengths"] = np.array(lengths, np.int32)
        arrays[f"{class_name}.timesteps"] = np.concatenate(timesteps).astype(np.float32)
        arrays[f"{class_name}.values"] = np.concatenate(values).astype(np.float32)
        print(class_name, len(keys), file=sys.stderr)
    about = {"command": COMMAND, "diffusers": diffusers.__version__, "torch": torch.__version__.split("+")[0]}
    np.savez_compressed(FILE, about=np.array(json.dumps(about)), **arrays)
    print(f"{FILE}: {Path(FILE).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
