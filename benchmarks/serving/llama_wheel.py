"""llama.cpp's server out of the wheel of xllamacpp, where there is no `llama-server`.

It takes the options of that program that `serving.llama_cpp` gives, and says nothing.
"""

import argparse
import signal
import threading

import xllamacpp


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", dest="model", required=True)
    parser.add_argument("--lora", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("-np", dest="slots", type=int, required=True)
    parser.add_argument("-c", dest="context", type=int, required=True)
    parser.add_argument("-t", dest="threads", type=int, required=True)
    parser.add_argument("-tb", dest="batch_threads", type=int, required=True)
    parser.add_argument("-ctk", choices=["f32"], required=True)
    parser.add_argument("-ctv", choices=["f32"], required=True)
    parser.add_argument("--no-warmup", action="store_true")
    arguments = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(arguments.lora, 1.0)]
    params.hostnames, params.port = ["127.0.0.1"], arguments.port
    params.n_parallel, params.n_ctx = arguments.slots, arguments.context
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.batch_threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.warmup = not arguments.no_warmup
    server = xllamacpp.Server(params)
    print(server.listening_address, xllamacpp.get_system_info(), flush=True)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()


if __name__ == "__main__":
    main()
