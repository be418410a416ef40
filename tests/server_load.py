#!/usr/bin/env python3
"""Loads of `serve` on the hash model, by hand: what a token costs the server, and a soak. Recorded in bench/results/server_load.md.

    server_load.py HASH_SERVER streams [STREAMS] [TOKENS]
    server_load.py HASH_SERVER latency [STREAMS] [TOKENS] [MILLISECONDS]
    server_load.py HASH_SERVER queue [REQUESTS]
    server_load.py HASH_SERVER soak [REQUESTS]
    server_load.py HASH_SERVER beside [ROUNDS]
"""
import json
import multiprocessing
import os
import pathlib
import random
import re
import socket
import sys
import tempfile
import time

import serve_harness
from faults_harness import WithServer, picture_chat
from serve_harness import MODEL, Server, chat, completion
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


def token_arrivals(client):
    """When the event with each token came whole; one event may have several."""
    head, _, body = bytes(client.reply).partition(b'\r\n\r\n')
    read, when = 0, []
    for at, size in client.arrivals:
        read += size
        when.append((read, at))
    times, place, part = [], len(head) + 4, 0
    for event in re.finditer(rb'data: (\{.*\})\n\n', body):
        while when[part][0] < place + event.end():
            part += 1
        for choice in json.loads(event[1])['choices']:
            times += [when[part][1]] * len(choice.get('token_ids') or [])
    return times


def latency(count=256, tokens=1000, milliseconds=0):
    """How long after the end of the step that made it a token is with its client. The end is the beginning of the next step, which
    reads the token; of an answer's last token nothing is said. Clock and tokens of steps are told by hash_server itself, whose steps
    sleep until so many milliseconds are over: without, they follow each other faster than the clients here can read."""
    with tempfile.TemporaryDirectory() as folder:
        steps = pathlib.Path(folder) / 'steps'
        serve_harness.ENVIRONMENT |= {'HASH_SERVER_STEPS': str(steps), 'HASH_SERVER_STEP_SECONDS': str(milliseconds / 1e3)}
        server = Server('--max-num-seqs', str(count), '--no-enable-prefix-caching')
        try:
            steps.open('r+').truncate()
            first, length = 1000, 8  # each prompt begins with a token of its own
            clients = [Client(post('/v1/completions', completion(prompt=[first + i] + [50] * (length - 1), max_tokens=tokens, ignore_eos=True, stream=True,
                                                                 return_token_ids=True, seed=i, temperature=1.0))) for i in range(count)]
            Swarm(server.port, count).run(clients)
        finally:
            server.end()
        stream_of, ends = {}, [{} for _ in clients]  # of a lane; of each stream's tokens
        for line in steps.read_text().splitlines():
            clock, *sequences = line.split()
            for lane, index, token in (map(int, sequence.split(':')) for sequence in sequences):
                if index == 0:
                    stream_of[lane] = token - first
                elif index >= length:
                    ends[stream_of[lane]][index - length] = float(clock)
    added, whole_steps = [], []
    for client, end in zip(clients, ends):
        arrivals = token_arrivals(client)
        assert len(arrivals) == tokens and len(end) == tokens - 1, (len(arrivals), len(end))
        added += [arrivals[k] - end[k] for k in end]
        whole_steps += [end[k + 1] - end[k] for k in range(tokens - 2)]
    print(f'{count} streams, {len(added)} tokens: with the client p50 {percentile(added, 0.5) * 1e3:.2f} ms, p99 {percentile(added, 0.99) * 1e3:.2f} ms, '
          f'at most {max(added) * 1e3:.2f} ms, at least {min(added) * 1e3:.2f} ms after the end of its step; a step takes '
          f'p50 {percentile(whole_steps, 0.5) * 1e3:.2f} ms, p99 {percentile(whole_steps, 0.99) * 1e3:.2f} ms', flush=True)


def queue(count=10_000):
    """H7 without a bound on the queue: so many at once on 16 lanes, none refused."""
    WithServer.FLAGS = (*WithServer.FLAGS, '--max-waiting-requests', str(count))
    WithServer.setUpClass()
    test = WithServer()
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
        WithServer.tearDownClass()


def others():
    """Requests of the other kinds: path, body, and what of a reply does not depend on when it came."""
    schema = {'type': 'object', 'properties': {'a': {'type': 'string', 'maxLength': 20}, 'b': {'enum': [1, 2]}}, 'required': ['a', 'b']}
    form = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': schema}}
    asked = {'max_tokens': 30, 'temperature': 1.0, 'seed': 3}
    def words(items):
        return [(item['type'], item.get('text') or item.get('thinking')) for item in items]
    return [('/v1/embeddings', {'model': MODEL, 'input': ['a', 'b c']}, lambda reply: reply['data']),
            ('/tokenize', {'messages': chat()['messages']}, lambda reply: reply['tokens']),
            ('/v1/messages', chat(**asked), lambda reply: (words(reply['content']), reply['stop_reason'])),
            ('/v1/responses', {'model': MODEL, 'input': 'x', 'max_output_tokens': 30, 'temperature': 1.0, 'seed': 3, 'store': False},
             lambda reply: [words(item['content']) for item in reply['output']]),
            ('/v1/chat/completions', chat(**asked, response_format=form), lambda reply: reply['choices']),
            ('/v1/chat/completions', picture_chat(1, **asked), lambda reply: reply['choices'])]


def soak(count=100_000):
    """K1: all kinds of requests, a tenth of them left, a tenth of them wrong; memory is looked at after each 10,000."""
    rng = random.Random(4)
    WithServer.setUpClass()
    test, kinds = WithServer(), others()
    try:
        alone = [of(test.server.ok(path, body)) for path, body, of in kinds]
        part, resident = 10_000, []
        for begin in range(0, count, part):
            clients = []
            for i in range(begin, min(begin + part, count)):
                kind, other = rng.randrange(10), rng.randrange(len(kinds))
                if kind == 0:
                    leave = {'leave': rng.randrange(2000), 'how': rng.choice(('fin', 'rst', 'half'))}
                    clients.append(('left', test.client(i, **leave) if i % 2 else Client(post(*kinds[other][:2]), **leave)))
                elif kind == 1:
                    wrong = rng.choice((b'{', b'[]', b'{"model": 1}', b'{"model": "x", "prompt": "y"}'))
                    clients.append(('wrong', Client(post('/v1/completions', wrong))))
                elif kind < 5:
                    clients.append((('other', other), Client(post(*kinds[other][:2]))))
                else:
                    clients.append((i, test.client(i)))
            Swarm(test.server.port, 64, seconds=3600).run([client for _, client in clients])
            for i, client in clients:
                if i == 'wrong':
                    assert parse(client.reply)[0] in (400, 404), client.reply
                elif isinstance(i, tuple):
                    status, _, body = parse(client.reply)
                    assert status == 200 and kinds[i[1]][2](json.loads(body)) == alone[i[1]], (kinds[i[1]][0], body[:500])
                elif i != 'left':
                    test.check(client, i)
            test.assert_idle()
            resident.append(test.resident() / (1 << 20))
            print(f'{begin + len(clients)} requests, resident {resident[-1]:.1f} MiB', flush=True)
        growth = (resident[-1] - resident[0]) / max(1, len(resident) - 1)
        assert growth < 1, f'{growth:.2f} MiB more for each {part} requests'
        test.until_equal(test.ledger, test.idle)
    finally:
        WithServer.tearDownClass()


def slow_readers(test, requests, over):
    """H3: each reads ten bytes whenever a fifth of a second is over."""
    sockets = [test.open_slow(data) for data in requests]
    while not over.wait(0.2):
        for one in sockets:
            try:
                one.recv(10, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass


def slow_heads(test, count, over):
    """H4: heads that get a byte more each second, and new ones for those that the server has closed."""
    sockets = []
    while not over.wait(1):
        sockets += [socket.create_connection(('127.0.0.1', test.server.port)) for _ in range(count - len(sockets))]
        for one in list(sockets):
            try:
                one.sendall(b'G')
            except OSError:
                one.close()
                sockets.remove(one)


def hard_forms(test, number, over):
    """C1: one form after the other that takes long to compile, or too long; none twice."""
    os.nice(19)  # what it takes of the machine itself is not the server's
    while not over.is_set():
        number += 4
        properties = {f'p{i}': {'type': 'string', 'pattern': f'^[^a{i % 10}]{{0,{33 + (i + number) % 1000}}}$'} for i in range(60)}
        form = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'type': 'object', 'properties': properties}}}
        client = Client(post('/v1/chat/completions', chat(max_tokens=2, response_format=form)))
        Swarm(test.server.port, 1).run([client])
        assert parse(client.reply)[0] in (200, 400, 503), client.reply[:300]


def beside(rounds=6):
    """H3, H4, C1: the same normal requests alone and beside others, in turns."""
    WithServer.setUpClass()
    test = WithServer()

    def between_tokens():
        return [test.server.metric(f'vllm:inter_token_latency_seconds_{what}') for what in ('count', 'sum')]

    def normal():
        clients = [test.client(i) for i in range(960)]
        tokens, seconds = between_tokens()
        begin = time.monotonic()
        Swarm(test.server.port, 32).run(clients)
        wall = time.monotonic() - begin
        tokens, seconds = (now - before for now, before in zip(between_tokens(), (tokens, seconds)))
        for i, client in enumerate(clients):
            test.check(client, i)
        return len(clients) / wall, percentile([client.ended - client.started for client in clients], 0.99), seconds / tokens

    crowds = {'500 slow readers': [(slow_readers, [test.client(i, stream=True).data for i in range(500)])],
              '2,000 heads without an end': [(slow_heads, 2000)], '4 clients with hard forms': [(hard_forms, i) for i in range(4)]}
    try:
        for name, crowd in crowds.items():
            ratios = [1.0] * 3
            for _ in range(rounds):
                quiet = normal()
                over = multiprocessing.Event()
                processes = [multiprocessing.Process(target=run, args=(test, what, over)) for run, what in crowd]
                for process in processes:
                    process.start()
                time.sleep(5)  # until they are all there
                loud = normal()
                over.set()
                for process in processes:
                    process.join()
                    assert process.exitcode == 0
                ratios = [ratio * now / alone for ratio, now, alone in zip(ratios, loud, quiet)]
                time.sleep(2)
            speed, late, step = (ratio ** (1 / rounds) for ratio in ratios)
            print(f'beside {name}: {speed:.3f} of the requests a second, p99 {late:.2f} times as long, between tokens {step:.2f} '
                  f'(the last: {loud[0]:.0f} a second, p99 {loud[1] * 1e3:.0f} ms, between tokens {loud[2] * 1e3:.3f} ms)', flush=True)
    finally:
        WithServer.tearDownClass()


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv[1]
    {'streams': streams, 'latency': latency, 'queue': queue, 'soak': soak, 'beside': beside}[sys.argv[2]](*map(int, sys.argv[3:]))
