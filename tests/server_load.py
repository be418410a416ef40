#!/usr/bin/env python3
"""Loads of `serve` on the hash model, by hand: what a token costs the server, and a soak. Recorded in bench/results/server_load.md.

    server_load.py HASH_SERVER streams [STREAMS] [TOKENS]
    server_load.py HASH_SERVER queue [REQUESTS]
    server_load.py HASH_SERVER soak [REQUESTS]
"""
import os
import pathlib
import random
import re
import sys
import time

import serve_harness
import server_faults_test as faults
from serve_harness import Server, completion
from swarm import Client, Swarm, parse, post



def cpu_seconds(process, thread):
    """Of one thread, user and system."""
    schedstat = pathlib.Path(f'/proc/{process}/task/{thread}/schedstat').read_text().split()
    return int(schedstat[0]) / 1e9


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def streams(count=256, tokens=1000):
    server = Server('--max-num-seqs', str(count), '--no-enable-prefix-caching')
    try:
        process = server.process.pid
        # Sockets are the first thread's.
        threads = [int(name) for name in os.listdir(f'/proc/{process}/task')]
        for kind in ('completions', 'chat/completions'):
            body = completion(max_tokens=tokens, ignore_eos=True, stream=True)
            if kind != 'completions':
                body['messages'] = [{'role': 'user', 'content': body.pop('prompt')}]
            before = {thread: cpu_seconds(process, thread) for thread in threads}
            start, tokens_before = time.monotonic(), server.metric('vllm:generation_tokens_total')
            clients = [Client(post(f'/v1/{kind}', {**body, 'seed': i, 'temperature': 1.0})) for i in range(count)]
            Swarm(server.port, count).run(clients)
            wall, made = time.monotonic() - start, server.metric('vllm:generation_tokens_total') - tokens_before
            used = {thread: cpu_seconds(process, thread) - before[thread] for thread in threads}
            assert all(parse(client.reply)[0] == 200 for client in clients)
            sockets = used.pop(process)
            gaps = [b - a for client in clients for (a, _), (b, _) in zip(client.arrivals, client.arrivals[1:])]
            print(f'{kind}: {count} streams, {made:.0f} tokens in {wall:.1f} s; sockets\' thread {sockets * 1e6 / made:.1f} us a token, '
                  f'{100 * sockets / wall:.0f} % of one core; all other threads {sum(used.values()) * 1e6 / made:.1f} us a token; '
                  f'gaps between parts p50 {percentile(gaps, 0.5) * 1e3:.1f} ms, p99 {percentile(gaps, 0.99) * 1e3:.1f} ms', flush=True)
    finally:
        server.end()


def queue(count=10_000):
    """H7 without a bound on the queue: so many at once on 16 lanes, none refused."""
    faults.WithServer.FLAGS = (*faults.WithServer.FLAGS, '--max-waiting-requests', str(count))
    faults.WithServer.setUpClass()
    test = faults.WithServer()
    try:
        idle, clients = test.resident(), [test.client(i) for i in range(count)]
        Swarm(test.server.port, count, seconds=3600).run(clients)
        for i, client in enumerate(clients):
            assert test.check(client, i)
        peak = re.search(r'VmHWM:\s+(\d+)', pathlib.Path(f'/proc/{test.server.process.pid}/status').read_text())
        waits = [client.ended - client.started for client in clients]
        print(f'{count} at once, all exact; resident at most {int(peak[1]) / 1024 - idle / (1 << 20):.0f} MiB over idle; longest wait '
              f'{max(waits) * len(waits) / sum(waits):.2f} of the mean', flush=True)
    finally:
        faults.WithServer.tearDownClass()


def soak(count=100_000):
    """K1: all kinds of requests, a tenth of them left, a tenth of them wrong; memory is looked at after each 10,000."""
    rng = random.Random(4)
    faults.WithServer.setUpClass()
    test = faults.WithServer()
    try:
        part, resident = 10_000, []
        for begin in range(0, count, part):
            clients = []
            for i in range(begin, min(begin + part, count)):
                kind = rng.randrange(10)
                if kind == 0:
                    how = rng.choice(('fin', 'rst', 'half'))
                    clients.append(('left', test.client(i, leave=rng.randrange(2000), how=how)))
                elif kind == 1:
                    wrong = rng.choice((b'{', b'[]', b'{"model": 1}', b'{"model": "x", "prompt": "y"}'))
                    clients.append(('wrong', Client(post('/v1/completions', wrong))))
                else:
                    clients.append((i, test.client(i)))
            Swarm(test.server.port, 64, seconds=3600).run([client for _, client in clients])
            for i, client in clients:
                if i == 'wrong':
                    assert parse(client.reply)[0] in (400, 404), client.reply
                elif i != 'left':
                    test.check(client, i)
            test.assert_idle()
            resident.append(test.resident() / (1 << 20))
            print(f'{begin + len(clients)} requests, resident {resident[-1]:.1f} MiB', flush=True)
        test.until_equal(test.ledger, test.idle)
    finally:
        faults.WithServer.tearDownClass()


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv[1]
    {'streams': streams, 'queue': queue, 'soak': soak}[sys.argv[2]](*map(int, sys.argv[3:]))
