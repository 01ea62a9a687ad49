# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backend's view of a GPU on a real one: copies, capture, memory given back. Needs cuda-python."""

from __future__ import annotations

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.tensorrt.device import CudaDevice, Rows


@pytest.mark.gpu
def test_the_real_cuda_runtime() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    device = CudaDevice(cuda)
    free = device.memory()[0]
    a, b = device.allocate(1 << 26), device.allocate(1 << 26)
    assert a % 256 == b % 256 == 0 and device.memory()[0] < free
    device.clear(a, 1 << 26)
    numbers = np.arange(1 << 20, dtype=np.int64)
    device.upload(b, numbers)
    numbers[:] = -1  # what was passed is the device's own
    device.copy_rows(Rows(a, 16), Rows(b, 8), width=8, count=1 << 20)
    found = device.host_array(1 << 24).view(np.int64)
    device.download(found, a)
    assert (found[::2] == np.arange(1 << 20)).all() and not found[1::2].any()
    device.clear(a, 16)  # what was put off is done before a capture
    device.begin_capture()
    device.copy_rows(Rows(a, 8), Rows(b, 8), width=8, count=2)
    graph = device.end_capture(keep=True)
    device.download(found[:2], a)
    assert not found[:2].any()  # recorded, not done
    device.upload(b, np.array([7, 8]))
    device.launch(graph)
    device.download(found[:2], a)
    assert found[:2].tolist() == [7, 8]
    device.release_graph(graph)
    with pytest.raises(NqEdgeError) as caught:
        device.allocate(1 << 50)
    assert caught.value.code == "NQ-MEMORY"
    device.close()
    assert device.memory()[0] >= free - (1 << 20)
