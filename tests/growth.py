# SPDX-License-Identifier: Apache-2.0
"""The memory of a process that makes sessions one after the other, of which no two live at once (Linux).

``python tests/growth.py 10000`` prints it, in kB, after 200 sessions, 1000 sessions and 10000 sessions.
"""

import gc
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from cases import Case

import lnbp_onnx


def resident_kilobytes() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def main(count: int) -> None:
    case = Case("growth", (2, 4))
    model, feeds = case.model().SerializeToString(), case.arrays()
    for number in range(1, count + 1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        outputs = lnbp_onnx.inference_session(model, sess_options=options).run(None, feeds)
        del options
        assert np.isfinite(outputs[0]).all()
        if number in {200, 1000, count}:
            print(number, resident_kilobytes(), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
