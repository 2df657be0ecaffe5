"""llama.cpp servers in processes of their own, by the package xllamacpp."""

import contextlib
import multiprocessing
import time

import httpx
import pytest
from warm import free_port


def serve_gguf(path, port):
    """Serve a file with llama.cpp; runs in a process of its own."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_ctx, params.n_parallel = str(path), port, 2048, 4
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = params.n_threads_http = 1
    params.warmup, params.verbosity = False, -1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds; the cache is f16 unless told
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    assert server.listening_address
    time.sleep(3600)


@contextlib.contextmanager
def llama_server(path):
    """A llama.cpp server in a process: its address and the process."""
    pytest.importorskip("xllamacpp")
    port = free_port()
    process = multiprocessing.get_context("forkserver").Process(target=serve_gguf, args=(path, port), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                break
        assert process.is_alive()
        time.sleep(0.05)
    yield url, process
    process.kill()
    process.join()
