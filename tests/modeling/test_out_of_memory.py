"""When the memory ends, embedding goes on in smaller parts and says so once."""

import pytest
import torch

from d3still.errors import UserError
from d3still.modeling.out_of_memory import InParts, is_out_of_memory


def holding(limit, attempts, error=torch.cuda.OutOfMemoryError):
    """A function of a batch for which the memory holds ``limit`` images."""

    def embed(part):
        attempts.append(len(part))
        if len(part) > limit:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return 2 * part

    return embed


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, MemoryError, RuntimeError])
def test_batches_are_halved_until_they_fit_and_stay_so(error, caplog):
    attempts = []
    embed = InParts(holding(5, attempts, error), "TEST.IMS_PER_BATCH")
    for batch in (torch.arange(16.0), torch.arange(7.0)):
        assert torch.equal(embed(batch), 2 * batch), "all images, in order"
    assert attempts == [16, 8, 4, 4, 4, 4, 4, 3]
    assert [record.message for record in caplog.records] == [
        "16 images at once did not fit into the memory: 4 from here on (TEST.IMS_PER_BATCH)"
    ]


def test_memory_that_holds_no_image_is_one_line():
    with pytest.raises(UserError, match="does not hold the network and one image"):
        InParts(holding(0, []), "TEST.IMS_PER_BATCH")(torch.arange(4.0))


def test_other_errors_are_not_taken_for_it():
    def embed(part):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        InParts(embed, "TEST.IMS_PER_BATCH")(torch.arange(4.0))


def test_what_a_full_memory_says_on_cpus_and_in_cudas_libraries():
    said = [
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ]
    assert all(is_out_of_memory(RuntimeError(text)) for text in said)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)  # the CPU allocator itself
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))
