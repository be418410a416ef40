#!/usr/bin/env python3
"""`serve` and clients that leave, do not read, hang, flood and smuggle, and more of them than it serves. Rows H1-H7 and H9 of the
acceptance table.

    server_faults_test.py HASH_SERVER [--full] [tests]
"""
import json
import random
import socket
import sys
import threading

import faults_harness
import serve_harness
from faults_harness import WithServer, body_of, picture_chat, quantity, told
from serve_harness import chat, completion
from swarm import Client, events_of, parse, post


class Leavers(WithServer):
    LONGEST = serve_harness.LONGEST

    # H1

    def test_clients_that_leave_streams_end_their_work_and_nobody_elses(self):
        rng = random.Random(1)
        leaving, staying = [], []
        aborted = self.ended('abort')
        for i in range(quantity(200, 1000)):
            if i % 2:
                staying.append((i, self.client(i)))
            else:
                body = completion(**serve_harness.LONG, stream=True, n=1 + i % 3)
                leaving.append(Client(post('/v1/completions', body), leave=rng.randrange(1, 3000), how=('fin', 'rst', 'half')[i // 2 % 3]))
        everybody = leaving + [client for _, client in staying]
        rng.shuffle(everybody)
        self.run_all(everybody)
        for i, client in staying:
            self.check(client, i)
        self.assert_idle()
        self.assertEqual(self.ended('abort') - aborted, sum(1 + i % 3 for i in range(0, quantity(200, 1000), 2)))


class Faults(WithServer):
    # H2

    def test_clients_that_leave_in_any_phase(self):
        rng = random.Random(2)
        ends = {'leave': 0, 'how': 'fin'}
        long = {'max_tokens': 1900, 'ignore_eos': True}
        schema = {'type': 'json_schema', 'json_schema': {'name': 'a', 'schema': {'type': 'object', 'properties': {'a': {'type': 'integer'}}}}}

        def phase(i, number):
            whole = post('/v1/completions', completion(**long, stream=True))
            head = whole.index(b'\r\n\r\n')
            data, how = {
                0: (whole[:rng.randrange(1, head)], ends),
                1: (whole[:rng.randrange(head + 4, len(whole))], ends),
                2: (whole, ends),  # in the queue: more of them than lanes
                3: (post('/v1/completions', completion(**{**long, 'prompt': 'Word ' * 1500, 'max_tokens': 20})), ends),
                4: (whole, {'leave': 2000, 'how': 'rst'}),
                5: (post('/v1/chat/completions', chat(**long, response_format=schema, stream=True)), ends),
                6: (post('/v1/completions', completion(max_tokens=1, stream=True)), {'leave': 150, 'how': 'rst'}),  # its last
                7: (post('/v1/completions', completion(**long)), ends),
                8: (post('/v1/chat/completions', picture_chat(rng.randrange(10**9), **long, stream=i % 2 == 0)), ends),
            }[number]
            return Client(data, **how)
        clients = [phase(i, i % 9) for i in range(9 * quantity(20, 200))]
        staying = [(i, self.client(i)) for i in range(64)]
        pictures = [picture_chat(i, max_tokens=9, seed=i, temperature=1.0) for i in range(8)]
        shown = [(told(*self.server.ask('/v1/chat/completions', body)[::2], False), Client(post('/v1/chat/completions', body))) for body in pictures]
        self.assertGreater(len({wanted for wanted, _ in shown}), 4)
        everybody = clients + [client for _, client in staying + shown]
        rng.shuffle(everybody)
        self.run_all(everybody, 96)
        for i, client in staying:
            self.check(client, i)
        for wanted, client in shown:
            self.assertEqual(told(*parse(client.reply)[::2], False), wanted)

    # H3

    def run_normal(self):
        normal = [(i, self.client(i)) for i in range(96)]
        self.run_all([client for _, client in normal], 32)
        for i, client in normal:
            self.check(client, i)

    def test_readers_that_do_not_read_delay_nobody(self):
        long = chat(max_tokens=1900, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20, n=2)
        slow = [self.open_slow(post('/v1/chat/completions', long)) for _ in range(3)]
        self.run_normal()
        answers = set()
        for one in slow[1:]:  # who reads in the end has all of it; the first never does
            reply = bytearray()
            while part := one.recv(1 << 16):
                reply += part
            texts = {}
            for event in events_of(parse(reply)[2])[0]:
                choice = event['choices'][0]
                texts[choice['index']] = texts.get(choice['index'], '') + (choice['delta'].get('content') or '')
            answers.add(tuple(sorted(texts.items())))
        self.assertEqual(len(answers), 1)
        self.assertGreater(len(reply), 5 << 20)  # more than the buffers of a connection
        for one in slow:
            one.close()

    def test_slow_readers_delay_nobody_and_get_all(self):
        resident = self.resident()
        slow = [(i, bytearray(), self.open_slow(self.client(i, stream=True).data)) for i in range(quantity(20, 500))]
        over = threading.Event()

        def trickle():
            while not over.wait(0.2):
                for _, reply, one in slow:
                    try:
                        reply += one.recv(10, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        pass
        reader = threading.Thread(target=trickle)
        reader.start()
        try:
            self.run_normal()
        finally:
            over.set()
            reader.join()
        self.assertLess(self.resident() - resident, 256 << 20)
        for i, reply, one in slow:
            while part := one.recv(1 << 16):
                reply += part
            status, _, body = parse(reply)
            self.assertEqual(told(status, body, True), self.alone[i % self.KINDS], i)
            one.close()

    # H4

    def test_clients_that_send_nothing_delay_nobody(self):
        hanging = []
        for i in range(quantity(300, 2000)):
            one = socket.create_connection(('127.0.0.1', self.server.port))
            one.sendall(b'POST /v1/completions HTTP/1.1\r\nHost'[:i % 37])
            hanging.append(one)
        normal = [(i, self.client(i)) for i in range(96)]
        self.run_all([client for _, client in normal], 32)
        for i, client in normal:
            self.check(client, i)
        if faults_harness.FULL:  # the deadline of a head
            for one in hanging:
                one.settimeout(60)
                self.assertEqual(one.recv(100), b'')
        for one in hanging:
            one.close()

    # H5, H6

    def test_floods_and_smuggling(self):
        head = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\n'
        hidden = b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n'
        chunked = b'Transfer-Encoding: chunked\r\n'
        inner = json.dumps(completion(max_tokens=1)).encode()
        small = b'%x\r\n%s\r\n' % (len(inner), inner)
        table = [
            (431, b'GET /health HTTP/1.1\r\n' + b''.join(b'a%d: b\r\n' % i for i in range(10_000)) + b'\r\n'),
            (431, b'GET /health HTTP/1.1\r\n' + b'a: b\r\n' * 101 + b'\r\n'),
            (431, b'GET /' + b'x' * (4 << 20)), (431, head + b'A: ' + b'x' * (4 << 20)),
            (400, head + b'no colon\r\n\r\n'), (400, head + b'A\0: b\r\n\r\n'), (400, head + b'A: b\0\r\n\r\n'), (400, head + b'A : b\r\n\r\n'),
            (400, head + b': b\r\n\r\n'), (400, head + b'A: b\r\n folded: c\r\n\r\n'), (400, head + b'A: b\nContent-Length: 5\r\n\r\n' + hidden),
            (400, head + b'A: b\rContent-Length: 5\r\n\r\n' + hidden), (400, b'\r\n \r\n\r\n'), (400, b'GET /health HTTP/1.1 \r\n\r\n'),
            (400, b'GET /health HTTP/2.0\r\n\r\n'), (400, b'GET  /health HTTP/1.1\r\n\r\n'), (400, b'GE T /health HTTP/1.1\r\n\r\n'),
            (400, head + b'Content-Length: 5\r\n' + chunked + b'\r\n0\r\n\r\n' + hidden),
            (400, head + chunked + b'Content-Length: 5\r\n\r\n0\r\n\r\n' + hidden), (400, head + chunked + chunked + b'\r\n0\r\n\r\n' + hidden),
            *((400, head + b'Content-Length: ' + value + b'\r\n\r\n' + hidden)
              for value in (b'-1', b'+5', b'0x5', b'5, 5', b'5 5', b'', b'5e0', b'18446744073709551621', b'99999999999999999999', b'"5"')),
            (400, head + b'Content-Length: 5\r\nContent-Length: 5\r\n\r\n' + hidden), (400, head + b'Content-Length: 5\r\nContent-Length: 0\r\n\r\n' + hidden),
            *((400, head + b'Transfer-Encoding:' + value + b'\r\n\r\n0\r\n\r\n' + hidden)
              for value in (b' gzip', b' xchunked', b' chunked, identity', b' chunked, chunked', b' identity', b'', b' chunked;a=b', b' "chunked"')),
            (400, b'POST /v1/completions HTTP/1.0\r\n' + chunked + b'\r\n0\r\n\r\n' + hidden),
            (413, head + b'Content-Length: 99999999999\r\n\r\n'), (415, head + b'Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}'),
            *((400, head + chunked + b'\r\n' + value + hidden)
              for value in (b'-1\r\n', b'0x5\r\nhello\r\n0\r\n\r\n', b'5\nhello\n0\n\n', b'g\r\n', b'fffffffffffffffff\r\n', b'5\r\nhelloX\r\n0\r\n\r\n', b' 5\r\nhello\r\n')),
            (200, head + chunked + b'Connection: close\r\n\r\n' + small + b'0\r\n\r\n'),
            (200, head + chunked + b'Connection: close\r\n\r\n' + small.replace(b'\r\n', b';a=b\r\n', 1) + b'0\r\nX: y\r\n\r\n'),
            (200, head + chunked + b'Connection: close\r\n\r\n' + b''.join(b'1\r\n%c\r\n' % c for c in inner) + b'0\r\n\r\n'),
        ]
        spaces = completion(max_tokens=1)
        padded = json.dumps(spaces).encode()[:-1] + b' ' * (500_000 if faults_harness.FULL else 100_000) + b'}'
        table.append((200, head + chunked + b'Connection: close\r\n\r\n' + b''.join(b'1\r\n%c\r\n' % c for c in padded) + b'0\r\n\r\n'))
        resident = self.resident()
        for repeat in range(quantity(1, 18)):
            handled = len(self.server.access())
            for status, data in table:
                reply = self.server.raw(data)
                self.assertEqual(int(reply[9:12] or 0), status, (data[:120], reply[:300]))
                self.assertEqual(reply.count(b'\r\nServer: '), 1, (data[:120], reply[:300]))
                if status != 200:
                    self.fault_of(status, reply.split(b'\r\n\r\n', 1)[1])
            self.assertEqual(len(self.server.access()) - handled, len(table))  # no second request was seen
        self.assertLess(self.resident() - resident, len(table) << 20)

    # H5

    def test_a_line_without_end_is_not_read_to_its_end(self):
        """A gibibyte, of which nobody takes more than what may be on its way: the request line, a field, a chunk's length."""
        begun = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\n'
        for begin, statuses in ((b'GET /', (431,)), (begun + b'A: ', (431,)), (begun, (431,)), (begun + b'Transfer-Encoding: chunked\r\n\r\n1;', (400, 431))):
            resident = self.resident()
            with socket.create_connection(('127.0.0.1', self.server.port), timeout=120) as one:
                one.sendall(begin)
                sent, part = len(begin), b'x' * (1 << 16)
                try:
                    while sent < 1 << 30:
                        sent += one.send(part)
                    self.fail('all of it was taken')
                except ConnectionError:
                    pass
            print(f'{begin[-8:]}: {sent >> 10} KiB could be sent', flush=True)
            self.assertLess(self.resident() - resident, 1 << 20, begin)
            reply = self.server.raw(begin + b'x' * (1 << 20))
            self.assertIn(int(reply[9:12]), statuses)

    # H9

    def test_kept_connections_pipelines_and_single_bytes(self):
        rng = random.Random(9)
        count, kinds = quantity(600, 10_000), [i for i in range(self.KINDS) if i % 4 != 3]
        while count > 0:
            sent = [kinds[rng.randrange(len(kinds))] for _ in range(rng.randrange(1, 12))]
            count -= len(sent)
            data = b''.join(post(body_of(i)[0], {**body_of(i)[1], 'stream': i % 3 == 0}).replace(b'Connection: close\r\n', b'') for i in sent)
            data = data + b'GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
            with socket.create_connection(('127.0.0.1', self.server.port), timeout=120) as one:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                step = rng.choice((1, 7, 100, len(data))) if len(sent) < 4 else len(data)
                for begin in range(0, len(data), step):
                    one.sendall(data[begin:begin + step])
                reply = b''
                while part := one.recv(1 << 16):
                    reply += part
            parts = reply.split(b'HTTP/1.1 200 OK\r\n')
            self.assertEqual(len(parts), len(sent) + 2, reply[:500])
            for i, part in zip(sent, parts[1:]):
                status, headers, body = parse(b'HTTP/1.1 200 OK\r\n' + part)
                self.assertEqual(told(status, body, 'Transfer-Encoding' in headers), self.alone[i])


class WithQueue(WithServer):
    """H7: many more at once than run or may wait."""
    FLAGS = (*WithServer.FLAGS, '--max-waiting-requests', '400')

    def test_whoever_is_accepted_is_served_and_the_rest_is_told(self):
        count, resident = quantity(1000, 10_000), self.resident()
        clients = [self.client(i) for i in range(count)]
        self.run_all(clients, count)
        served = sum(self.check(client, i, refusals=(429, 503)) for i, client in enumerate(clients))
        print(f'{served} of {count} were served, {count - served} refused', flush=True)
        self.assertGreaterEqual(served, 400)
        self.assertLess(self.resident() - resident, 1 << 30)


if __name__ == '__main__':
    sys.exit(faults_harness.main())
