# SPDX-License-Identifier: MIT
"""Processes that share memory: by fork, by multiprocessing's arrays, queues and pools."""
import mmap
import multiprocessing
import os

MB = 1 << 20
CHILDREN = 4


def fork_over_shared_mapping():
    """Each child fills its part of a shared mapping, and changes what is its own."""
    shared = mmap.mmap(-1, 8 * MB)
    own = bytearray(b"x" * 8 * MB)
    children = []
    for i in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            own[:] = bytes([i]) * len(own)
            shared[i * MB : (i + 1) * MB] = own[:MB]
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    for i in range(CHILDREN):
        assert shared[i * MB : (i + 1) * MB] == bytes([i]) * MB
    assert own == b"x" * 8 * MB


def count(array, queue, number):
    for k in range(1000):
        with array.get_lock():
            array[k % len(array)] += 1
    queue.put(number)


def square(n):
    return n * n


def multiprocessing_job():
    array = multiprocessing.Array("l", 100)
    queue = multiprocessing.Queue()
    workers = [
        multiprocessing.Process(target=count, args=(array, queue, i)) for i in range(CHILDREN)
    ]
    for worker in workers:
        worker.start()
    assert sorted(queue.get() for _ in workers) == list(range(CHILDREN))
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert list(array) == [CHILDREN * 10] * 100
    with multiprocessing.Pool(3) as pool:
        assert pool.map(square, range(1000)) == [n * n for n in range(1000)]


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    fork_over_shared_mapping()
    multiprocessing_job()
    print("all right")
