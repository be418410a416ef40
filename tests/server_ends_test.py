#!/usr/bin/env python3
"""SIGTERM while `serve` is under load. Row P1 of the acceptance table.

    server_ends_test.py HASH_SERVER [--full] [tests]
"""
import random
import signal
import sys
import threading
import unittest

import faults_harness
from faults_harness import WORDS, quantity, told
from serve_harness import Server, completion
from swarm import Client, Swarm, events_of, parse, post


class Ends(unittest.TestCase):
    """P1: SIGTERM at random moments under load."""

    def test_the_end_under_load(self):
        rng = random.Random(21)
        bodies = [completion(prompt=WORDS[i % len(WORDS)], max_tokens=(1, 40, 290, 900, 1400)[i % 5], ignore_eos=True) for i in range(30)]
        server, alone = Server(), []
        for body in bodies:
            alone.append(told(*server.ask('/v1/completions', body)[::2], False))
        self.assertEqual(server.end(), 0)
        self.assertGreater(len(set(alone)), 20)
        whole = broken = 0
        for i in range(quantity(8, 200)):
            server = Server('--max-num-seqs', '4', '--shutdown-timeout', ('600', '0')[i % 2])
            chosen = [rng.randrange(len(bodies)) for _ in range(24)]
            clients = [Client(post('/v1/completions', {**bodies[j], 'stream': True})) for j in chosen]
            signals = [threading.Timer(rng.random() * 0.3, server.process.send_signal, [signal.SIGTERM]) for _ in range(1 + i // 2 % 2)]
            for one in signals:
                one.start()
            Swarm(server.port, 8).run(clients)
            for one in signals:
                one.join()
            self.assertEqual(server.end(), 0)
            for j, client in zip(chosen, clients):
                if not client.reply:
                    continue  # it came behind the end
                status, headers, body = parse(client.reply)
                self.assertIn(status, (200, 503))
                if status != 200:
                    continue
                events, failed = events_of(body)  # whole, or with one error at its end
                text = ''.join(event['choices'][0]['text'] for event in events if 'choices' in event)
                whole, broken = whole + (not failed), broken + failed
                if not failed:
                    self.assertEqual(told(status, body, True), alone[j])
                self.assertTrue(alone[j][0].startswith(text))
        print(f'{whole} streams to their end, {broken} ended by an error', flush=True)

    def test_signals_during_the_end_do_not_kill(self):
        for _ in range(quantity(3, 50)):
            server = Server()
            for _ in range(100_000):
                server.process.send_signal(signal.SIGTERM)
                if server.process.poll() is not None:
                    break
            self.assertEqual(server.end(), 0)


if __name__ == '__main__':
    sys.exit(faults_harness.main())
