# SPDX-License-Identifier: MIT
"""run_memcached_load.py PORT - several clients store values of all sizes and look at them again. What was
evicted may be missing; what is there must be right."""
import random
import socket
import sys
import threading
import time

CLIENTS = 4
ROUNDS = 3
KEYS = 3000


def connect(port):
    until = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


class Client(threading.Thread):
    def __init__(self, port, number):
        super().__init__()
        self.stream = connect(port).makefile("rwb")
        self.number = number
        self.random = random.Random(number)
        self.hits = 0
        self.error = None

    def store(self, values):
        for key, value in values.items():
            self.stream.write(b"set %s 0 0 %d noreply\r\n%s\r\n" % (key, len(value), value))
        self.stream.flush()

    def get(self, key):
        self.stream.write(b"get %s\r\n" % key)
        self.stream.flush()
        head = self.stream.readline().split()
        if head == [b"END"]:
            return None
        assert head[:2] == [b"VALUE", key], head
        value = self.stream.read(int(head[3]))
        assert self.stream.readline() == b"\r\n" and self.stream.readline() == b"END\r\n"
        return value

    def work(self):
        values = {}
        for _ in range(ROUNDS):
            for i in range(KEYS):
                size = self.random.choice((10, 100, 1000, 9000))
                values[b"%d:%d" % (self.number, i)] = self.random.randbytes(size)
            self.store(values)
            for key, value in values.items():
                got = self.get(key)
                assert got is None or got == value, key
                self.hits += got is not None

    def run(self):
        try:
            self.work()
        except Exception as error:  # for the main thread
            self.error = error


def main():
    clients = [Client(int(sys.argv[1]), i) for i in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
        if client.error:
            raise client.error
    hits = sum(client.hits for client in clients)
    assert hits > CLIENTS * ROUNDS * KEYS // 2, hits
    print(f"{hits} values were right")


main()
