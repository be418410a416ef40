#!/usr/bin/env python3
"""What `serve` says of requests that mean it ill, in its log and its metrics. Rows C8 and C11 of the acceptance table.

    server_logs_test.py HASH_SERVER [--full] [tests]
"""
import http.client
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import unittest

import faults_harness
import serve_harness
from faults_harness import WithServer, quantity
from serve_harness import Server, completion
from swarm import Client, parse


class Logs(WithServer):
    # C8, C11

    def test_logs_are_lines_and_metrics_do_not_grow(self):
        rng = random.Random(11)
        names = ('a\\r\\nb', '\x1b[31m', '\u2028', '\u202e', 'a"b', '%0d%0a', '%ff', '%e2%80%a8', '\\', 'é')

        def series():
            return [line.rsplit(' ', 1)[0] for line in self.server.ask('/metrics')[2].decode().splitlines()]
        before, lines = series(), len(self.server.access())
        clients = []
        for i in range(quantity(1000, 100_000)):
            odd = (names[i % len(names)] + str(rng.randrange(10**9))).encode()
            head = b'%s /%s HTTP/1.1\r\nHost: x\r\nX-%d: y\r\nX-Request-Id: %s\r\nUser-Agent: %s\r\nConnection: close\r\n' % (
                (b'GET', b'POST', b'PURGE%d' % i, b'OPTIONS')[i % 4], odd.replace(b' ', b''), i, odd, odd) + b'Authorization: Bearer secret-key\r\nX-Api-Key: secret-key\r\n'
            body = json.dumps({'model': odd.decode(), 'prompt': 'secret-prompt'}).encode() if i % 4 == 1 else b''
            if i % 8 == 1:
                head = head.replace(b'/' + odd.replace(b' ', b''), b'/v1/completions', 1)
            clients.append(Client(head + b'Content-Length: %d\r\n\r\n' % len(body) + body))
        self.run_all(clients)
        for client in clients:
            status, _, body = parse(client.reply)
            self.assertIn(status, (204, 400, 404, 405, 501))
            if status != 204 and body:
                self.fault_of(status, body)
        self.assertEqual(series(), before)
        raw = pathlib.Path(self.server.access_path).read_bytes()
        self.assertGreaterEqual(len(self.server.access()) - lines, len(clients))
        for secret in b'secret-prompt', b'secret-key':
            self.assertNotIn(secret, raw + self.server.log().encode())
        for text in (raw.decode('utf-8'), self.server.log()):
            self.assertFalse([c for c in text if c != '\n' and (ord(c) < 32 or ord(c) in (0x7f, 0x2028, 0x2029, 0x202e))])


class TextLogs(unittest.TestCase):
    """C8 where access lines are texts of the log."""

    def test_a_line_is_a_line(self):
        server = Server('--api-key', 'secret-key', json_lines=False)
        odd = ('%0a%0dfaked', '%1b%5b31m', '%e2%80%a8', '%e2%80%ae', '%7f', '%ff%fe', '"', '%5c')
        before = len(server.log().splitlines())
        for path in odd:
            server.ask(f'/{path}')
            for key, status in ('secret-key', 404), ('secret-key-of-others', 401):
                got, _, text = server.ask('/v1/completions', {'model': path, 'prompt': 'secret-prompt'},
                                          headers={'X-Request-Id': path, 'User-Agent': path, 'Authorization': f'Bearer {key}'})
                self.assertEqual(got, status)
                self.assertNotIn(b'secret-key', text)
        text = pathlib.Path(server.log_path).read_bytes().decode('utf-8')
        self.assertEqual(server.end(), 0)
        self.assertEqual(len(text.splitlines()) - before, 3 * len(odd))
        self.assertFalse([c for c in text if c != '\n' and (ord(c) < 32 or ord(c) in (0x7f, 0x2028, 0x2029, 0x202e))])
        for secret in 'secret-prompt', 'secret-key':
            self.assertNotIn(secret, text)

    def test_a_log_that_nobody_reads_ends_nothing(self):
        process = subprocess.Popen([serve_harness.PROGRAM, 'serve', '--port', '0', '--max-model-len', '2048', '--json'],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=serve_harness.ENVIRONMENT)
        found = None
        while not found:
            found = re.search(rb'serving .* on http://\S+:(\d+)', process.stderr.readline())
        process.stdout.close()
        process.stderr.close()
        for _ in range(3):
            connection = http.client.HTTPConnection('127.0.0.1', int(found.group(1)), timeout=120)
            connection.request('POST', '/v1/completions', json.dumps(completion(max_tokens=2)))
            self.assertEqual(connection.getresponse().status, 200)
            connection.close()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(120), 0)


if __name__ == '__main__':
    sys.exit(faults_harness.main())
