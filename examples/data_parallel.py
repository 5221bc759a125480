# SPDX-License-Identifier: Apache-2.0
"""Train the GPT of train_gpt.py on several processes, which share the rows of each batch: data parallelism with MPI.

Every process computes the gradients of its rows with the native kernel. Weighted by the share of rows, these are
summed over the processes in one message, and every process takes the same step of AdamW, in NumPy. The losses and the
parameters are those of one process.

    pip install mpi4py mpich
    mpiexec -n 4 python examples/data_parallel.py --steps 200 --rows 32

Open MPI's mpiexec needs --oversubscribe where there are fewer cores than processes.
"""

import time
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

import lnbp_onnx
import program
from gpt.adamw import AdamW
from gpt.arguments import training_parser
from gpt.text import batches
from gpt.training import context_of, defaults, joint_model, run_of, session_options
from runtimes import Run, Tensors

INSTALL = "pip install mpi4py mpich"

if TYPE_CHECKING:
    from mpi4py import MPI


def shared(run: Run, communicator: "MPI.Comm") -> Run:
    """Return what gives the loss and the gradients of a whole batch, of which each process runs its rows."""
    from mpi4py import MPI

    def run_rows(feeds: Tensors) -> Tensors:
        rows = len(feeds["tokens"])
        mine = np.array_split(np.arange(rows), communicator.size)[communicator.rank]
        results = run(feeds | {name: feeds[name][mine] for name in ("tokens", "targets")})

        flat = np.concatenate([value.ravel() for value in results.values()]) * np.float32(len(mine) / rows)
        communicator.Allreduce(MPI.IN_PLACE, flat)
        ends = np.cumsum([value.size for value in results.values()])
        parts = np.split(flat, ends[:-1])
        return {name: part.reshape(value.shape) for (name, value), part in zip(results.items(), parts, strict=True)}

    return run_rows


def train(run: Run, parameters: Tensors, batches: Iterable[Tensors]) -> list[float]:
    """Take a step of AdamW for each batch and return the losses before them; `parameters` are updated in place."""
    optimizer, losses = AdamW(parameters), []
    for batch in batches:
        results = run(batch | parameters)
        optimizer.step({name: results[f"{name}.grad"] for name in parameters})
        losses.append(float(results["loss"]))
    return losses


def main() -> None:
    parser = training_parser(__doc__, steps=20, rows=16)
    parser.add_argument(
        "--save", type=program.output_file, help="where to write the losses and the parameters, as .npz"
    )
    options = parser.parse_args()
    program.require("mpi4py", INSTALL)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the package without an MPI
        raise program.NotInstalledError(f"mpi4py finds no MPI ({error}; {INSTALL}).") from error

    communicator = MPI.COMM_WORLD
    if options.rows < communicator.size:
        parser.error(f"{options.rows} rows are too few for {communicator.size} processes")

    model = joint_model(options.model)
    if options.save:
        program.make_folder_of(options.save)
    run = run_of(lnbp_onnx.inference_session(model, sess_options=session_options(threads=1)))
    parameters = defaults(model)
    data = islice(batches(options.rows, context_of(model)), options.steps)
    start = time.perf_counter()
    losses = train(shared(run, communicator), parameters, data)
    speed = options.steps / (time.perf_counter() - start)
    if communicator.rank == 0:
        print(f"{communicator.size} processes, {options.rows} rows a step: ", end="")
        print(f"loss {losses[0]:.6f} to {losses[-1]:.6f} in {options.steps} steps; {speed:.0f} steps a second")
        if options.save:
            np.savez(options.save, loss=losses, **parameters)


if __name__ == "__main__":
    program.run(main)
