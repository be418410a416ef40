#!/usr/bin/env python3
"""The official `openai` and `anthropic` Python clients against `calandra serve`, as programs of users call it.

    clients_test.py PROGRAM SCRIPTED_SERVER

Twice: with the demo model, and with a model that says what tests/scripted/scripts.json has for a marker in the conversation, so that
tool calls, reasoning and schemas really come. The clients lie in build/test-clients (tools/install_deps.sh --tests); without them the
status is 77, skipped.
"""
import json
import pathlib
import subprocess
import sys
import unittest

import gtest_report
import serve_harness
from serve_harness import CHECKS, LONG, LONGEST, MODEL, ROOT, Server

sys.path.insert(0, str(ROOT / 'build' / 'test-clients'))
try:
    import anthropic
    import openai
    import pydantic
except ImportError as error:
    print(f'skipped: {error}; tools/install_deps.sh --tests installs the clients')
    sys.exit(77)

SCRIPTS = ROOT / 'tests' / 'scripted' / 'scripts.json'
TEXTS = json.loads(SCRIPTS.read_text())
DRAFTS = ('--speculative-config', '{"method": "mtp", "num_speculative_tokens": 3, "adaptive": false}')
SCRIPTED = []
WEATHER = {'type': 'object', 'properties': {'city': {'type': 'string'}, 'days': {'type': 'integer'}}, 'required': ['city'],
           'additionalProperties': False}
TOOL = {'type': 'function', 'function': {'name': 'weather', 'description': 'The weather of a city.', 'parameters': WEATHER}}
REQUIRED = {'tools': [TOOL], 'tool_choice': 'required'}
THINKING = {'chat_template_kwargs': {'enable_thinking': True}}
PARIS = {'city': 'Paris', 'days': 3}
BOTH = [{'city': 'Paris'}, {'city': 'Zürich "old town"', 'days': 2}]


class Person(pydantic.BaseModel):
    name: str
    age: int
    tags: list[str]


ADA = Person(name='Ada', age=36, tags=['a', 'ü'])


def vectors(client, texts, **options):
    return [row.embedding for row in client.embeddings.create(model=MODEL, input=texts, **options).data]


def say(marker):
    return [{'role': 'user', 'content': f'Please [[{marker}]]'}]


class WithClients(unittest.TestCase):
    program, flags = (), DRAFTS

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.flags, '--max-num-seqs', '8', program=cls.program, longest=LONGEST)
        base = f'http://127.0.0.1:{cls.server.port}'
        cls.client = openai.OpenAI(base_url=base + '/v1', api_key='none', max_retries=0, timeout=120)
        cls.anthropic = anthropic.Anthropic(base_url=base, api_key='none', max_retries=0, timeout=120)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.anthropic.close()
        assert cls.server.end() == 0


class Demo(WithClients):
    def test_recorded_client_checks(self):
        if not CHECKS.is_dir():
            self.skipTest('no recorded checks beside the repository')
        path = f'import sys; sys.path.insert(0, {str(ROOT / "build" / "test-clients")!r}); import runpy; runpy.run_path(sys.argv.pop(1), run_name="__main__")'
        done = subprocess.run([sys.executable, '-c', path, str(CHECKS / 'run_clients.py'), f'http://127.0.0.1:{self.server.port}'],
                              capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], [MODEL])
        self.assertEqual(self.client.models.retrieve(MODEL).id, MODEL)

    def test_a_stream_that_is_left_ends_its_request(self):
        stream = self.client.chat.completions.create(model=MODEL, messages=say(''), max_tokens=LONG['max_tokens'], stream=True, extra_body={'ignore_eos': True})
        next(iter(stream))
        stream.close()
        self.assertTrue(self.server.until(lambda: self.server.metric('vllm:num_requests_running') == 0))

    def test_embeddings(self):
        texts = ['red', 'green and blue', 'Once upon a time']
        rows = vectors(self.client, texts)  # asks for base64
        self.assertEqual(len({tuple(row) for row in rows}), len(texts))
        for row, plain, one in zip(rows, vectors(self.client, texts, encoding_format='float'), texts):
            self.assertAlmostEqual(sum(x * x for x in row), 1, places=5)
            self.assertTrue(all(abs(x - y) < 1e-6 for x, y in zip(row, plain)))
            self.assertEqual(vectors(self.client, one), [row])
            ids = self.server.ok('/tokenize', {'prompt': one})['tokens']
            self.assertEqual(vectors(self.client, ids), [row])
            self.assertEqual(vectors(self.client, [ids, ids[:1]])[0], row)
        reply = self.client.embeddings.create(model=MODEL, input=texts)
        self.assertEqual([row.index for row in reply.data], [0, 1, 2])
        self.assertEqual(reply.usage.prompt_tokens, sum(self.server.ok('/tokenize', {'prompt': text})['count'] for text in texts))
        self.assertEqual(vectors(self.client, texts, dimensions=len(rows[0])), rows)
        with self.assertRaisesRegex(openai.BadRequestError, 'Matryoshka'):
            vectors(self.client, texts, dimensions=8)

    def test_errors_are_those_of_the_client(self):
        for kind, options in ((openai.NotFoundError, {'model': 'other'}), (openai.BadRequestError, {'top_p': 2}),
                              (openai.BadRequestError, {'messages': []})):
            with self.assertRaises(kind) as raised:
                self.client.chat.completions.create(**{'model': MODEL, 'messages': say(''), **options})
            self.assertTrue(raised.exception.body['message'])


class MeanPooling(WithClients):
    flags = ('--pooler-config', '{"pooling_type": "mean", "dimensions": 64}', '--hf-overrides', '{"matryoshka_dimensions": [64, 32]}')

    def test_embeddings(self):
        """Hidden rows of a causal model do not depend on what follows, so the mean is that of the last rows of all beginnings."""
        ids = self.server.ok('/tokenize', {'prompt': 'red, green and blue'})['tokens']
        last = Server(longest=LONGEST)
        client = openai.OpenAI(base_url=f'http://127.0.0.1:{last.port}/v1', api_key='none', max_retries=0, timeout=120)
        rows = vectors(client, [ids[:end] for end in range(1, len(ids) + 1)], extra_body={'normalize': False})
        client.close()
        self.assertEqual(last.end(), 0)
        mean = [sum(values) / len(rows) for values in zip(*rows)]
        raw, = vectors(self.client, [ids], extra_body={'normalize': False})
        self.assertEqual(len(raw), 64)
        self.assertTrue(all(abs(x - y) < 1e-5 * max(map(abs, mean)) for x, y in zip(raw, mean)))
        for options, size in (({}, 64), ({'dimensions': 32}, 32), ({'dimensions': len(mean)}, len(mean))):
            row, = vectors(self.client, [ids], **options)
            length = sum(x * x for x in mean[:size]) ** 0.5
            self.assertEqual(len(row), size)
            self.assertTrue(all(abs(x - y / length) < 1e-5 for x, y in zip(row, mean)))
        with self.assertRaisesRegex(openai.BadRequestError, '64, 32'):
            vectors(self.client, [ids], dimensions=16)

    def test_wrong_flags_are_told(self):
        for flag, told in (('{"pooling_type": "CLS"}', 'LAST or MEAN'), ('{"dimensions": 64}', 'Matryoshka'), ('{"normalize": 1}', 'true or false'),
                           ('{"step_tag_id": 1}', 'step_tag_id is not supported')):
            with self.assertRaisesRegex(RuntimeError, told):
                Server('--override-pooler-config', flag)


class Scripted(WithClients):
    """What the model says is known, so is what clients must get of it."""

    @classmethod
    def setUpClass(cls):
        cls.program = SCRIPTED
        super().setUpClass()

    def chat(self, marker, **options):
        return self.client.chat.completions.create(**{'model': MODEL, 'messages': say(marker), 'max_tokens': 400, **options})

    def streamed(self, marker, **options):
        """Content, reasoning, calls by index and the finish reason, put together of the stream's parts."""
        content, reasoning, calls, finish = '', '', {}, None
        for chunk in self.chat(marker, stream=True, **options):
            for choice in chunk.choices:
                self.assertIsNone(finish, 'a part behind the last')
                finish = choice.finish_reason
                content += choice.delta.content or ''
                reasoning += getattr(choice.delta, 'reasoning_content', None) or ''
                for part in choice.delta.tool_calls or []:
                    call = calls.setdefault(part.index, {'id': part.id, 'name': part.function.name, 'arguments': ''})
                    call['arguments'] += part.function.arguments or ''
        return content, reasoning, [calls[index] for index in sorted(calls)], finish

    def test_text(self):
        for marker in ('', 'unicode', 'not_json'):
            choice = self.chat(marker).choices[0]
            self.assertEqual((choice.message.content, choice.finish_reason), (TEXTS[marker], 'stop'))
            self.assertEqual(self.streamed(marker)[0::3], (TEXTS[marker], 'stop'))

    def test_drafts_were_taken_and_refused(self):
        before = [self.server.metric(f'vllm:spec_decode_num_{what}_tokens_total') for what in ('draft', 'accepted')]
        self.chat('unicode')
        drafted, accepted = (self.server.metric(f'vllm:spec_decode_num_{what}_tokens_total') - old
                             for what, old in zip(('draft', 'accepted'), before))
        self.assertTrue(drafted < 3 * accepted < 3 * drafted, (accepted, drafted))  # four of five are right

    def test_reasoning(self):
        reasoning, content = TEXTS['thought'].split('</think>')
        message = self.chat('thought', extra_body=THINKING).choices[0].message
        self.assertEqual((message.content.strip(), message.reasoning_content.strip()), (content.strip(), reasoning.strip()))
        streamed = self.streamed('thought', extra_body=THINKING)
        self.assertEqual((streamed[0], streamed[1], streamed[3]), (message.content, message.reasoning_content, 'stop'))

    def test_tools(self):
        for marker, wanted in (('tool', [PARIS]), ('tools', BOTH)):
            choice = self.chat(marker, tools=[TOOL]).choices[0]
            calls = choice.message.tool_calls
            self.assertEqual(choice.finish_reason, 'tool_calls')
            self.assertEqual([(c.function.name, json.loads(c.function.arguments)) for c in calls], [('weather', w) for w in wanted])
            self.assertEqual(len({c.id for c in calls}), len(wanted))
            content, _, parts, finish = self.streamed(marker, tools=[TOOL])
            self.assertEqual((content.strip(), finish), ((choice.message.content or '').strip(), 'tool_calls'))
            self.assertEqual([(p['name'], p['arguments']) for p in parts], [(c.function.name, c.function.arguments) for c in calls])
            self.assertTrue(all(p['id'] for p in parts))

    def test_tools_after_reasoning(self):
        content, reasoning, calls, finish = self.streamed('thought_tool', tools=[TOOL], extra_body=THINKING)
        self.assertEqual((content.strip(), reasoning.strip(), finish), ('', 'The weather of Paris is asked for.', 'tool_calls'))
        self.assertEqual([json.loads(c['arguments']) for c in calls], [{'city': 'Paris'}])

    def test_tools_in_turns(self):
        first = self.chat('tool', tools=[TOOL]).choices[0].message
        answer = {'role': 'tool', 'tool_call_id': first.tool_calls[0].id, 'content': 'Sun. [[unicode]]'}
        choice = self.chat('', tools=[TOOL], messages=[*say('tool'), first, answer]).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), (TEXTS['unicode'], 'stop'))

    def test_no_tools_are_given(self):
        for options in ({}, {'tools': [TOOL], 'tool_choice': 'none'}):
            choice = self.chat('tool', **options).choices[0]
            self.assertEqual((choice.message.tool_calls, choice.finish_reason), (None, 'stop'))
            self.assertIn('I look it up.', choice.message.content)

    def test_helper_of_streams(self):
        with self.client.chat.completions.stream(model=MODEL, messages=say('tools'), max_tokens=400,
                                                 tools=[{'type': 'function', 'function': {**TOOL['function'], 'strict': True}}]) as stream:
            done = [event for event in stream if event.type == 'tool_calls.function.arguments.done']
            final = stream.get_final_completion()
        self.assertEqual([event.parsed_arguments for event in done], BOTH)
        self.assertEqual(final.choices[0].finish_reason, 'tool_calls')

    def test_schemas(self):
        options = {'model': MODEL, 'messages': say('json'), 'max_tokens': 400, 'response_format': Person}
        choice = self.client.chat.completions.parse(**options).choices[0]
        self.assertEqual((choice.message.parsed, choice.finish_reason), (ADA, 'stop'))
        with self.client.chat.completions.stream(**options) as stream:
            self.assertEqual(stream.get_final_completion().choices[0].message.parsed, ADA)

    def test_a_schema_is_stronger_than_the_model(self):
        schema = {'type': 'object', 'properties': {'ok': {'type': 'boolean'}}, 'required': ['ok'], 'additionalProperties': False}
        choice = self.chat('not_json', response_format={'type': 'json_schema', 'json_schema': {'name': 'ok', 'strict': True, 'schema': schema}}).choices[0]
        self.assertIsInstance(json.loads(choice.message.content)['ok'], bool)

    def test_finish_reasons(self):
        choice = self.chat('endless', max_tokens=9).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), (' on and on' * 3, 'length'))
        choice = self.chat('unicode', stop=['👩']).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), (TEXTS['unicode'].split('👩')[0], 'stop'))
        choice = self.chat('tools', tools=[TOOL], max_tokens=12).choices[0]
        self.assertEqual(choice.finish_reason, 'length')

    def test_usage(self):
        whole = self.chat('unicode')
        chunks = list(self.chat('unicode', stream=True, stream_options={'include_usage': True}))
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(chunks[-1].usage.total_tokens, whole.usage.total_tokens)

    def test_several_answers(self):
        self.assertEqual([c.message.content for c in self.chat('unicode', n=3).choices], [TEXTS['unicode']] * 3)

    # tool_choice

    def test_tool_choice(self):
        for choice in ('required', {'type': 'function', 'function': {'name': 'weather'}}):
            for marker in ('tools', 'not_json'):  # one says what is asked for by itself, the other does not
                options = {'tools': [TOOL], 'tool_choice': choice, 'max_tokens': 400, 'temperature': 0}
                reply = self.chat(marker, **options).choices[0]
                self.assertTrue(reply.message.tool_calls or reply.finish_reason == 'length', reply)
                for call in reply.message.tool_calls or []:
                    self.assertEqual(call.function.name, 'weather')
                    if reply.finish_reason != 'length':
                        self.assertIn('city', json.loads(call.function.arguments))
                _, _, calls, finish = self.streamed(marker, **options)
                self.assertEqual([(c['name'], c['arguments']) for c in calls],
                                 [(c.function.name, c.function.arguments) for c in reply.message.tool_calls or []])
                self.assertEqual(finish, reply.finish_reason)
        self.assertEqual(json.loads(self.chat('tools', **REQUIRED).choices[0].message.tool_calls[0].function.arguments), BOTH[0])

    # /v1/responses

    def respond(self, marker, **options):
        return self.client.responses.create(**{'model': MODEL, 'input': say(marker), 'max_output_tokens': 400, **options})

    def test_responses_text(self):
        for marker in ('', 'unicode'):
            reply = self.respond(marker)
            self.assertEqual((reply.output_text, reply.status), (TEXTS[marker], 'completed'))
            events = list(self.respond(marker, stream=True))
            self.assertEqual(''.join(e.delta for e in events if e.type == 'response.output_text.delta'), TEXTS[marker])
            self.assertEqual((events[0].type, events[-1].type), ('response.created', 'response.completed'))
            self.assertEqual(events[-1].response.output_text, TEXTS[marker])
            self.assertEqual([e.sequence_number for e in events], sorted({e.sequence_number for e in events}))
        self.assertEqual(self.respond('endless', max_output_tokens=16).status, 'incomplete')

    def test_responses_tools(self):
        tools = [{'type': 'function', 'name': 'weather', 'description': 'The weather of a city.', 'parameters': WEATHER, 'strict': False}]
        reply = self.respond('tools', tools=tools)
        calls = [item for item in reply.output if item.type == 'function_call']
        self.assertEqual([json.loads(call.arguments) for call in calls], BOTH)
        events = list(self.respond('tools', tools=tools, stream=True))
        done = [e for e in events if e.type == 'response.function_call_arguments.done']
        self.assertEqual([json.loads(e.arguments) for e in done], BOTH)
        for one in done:
            self.assertEqual(''.join(e.delta for e in events if e.type == 'response.function_call_arguments.delta' and e.item_id == one.item_id),
                             one.arguments)
        result = {'type': 'function_call_output', 'call_id': calls[0].call_id, 'output': 'Sun. [[unicode]]'}
        turn = [calls[0].model_dump(exclude_none=True), result]
        self.assertEqual(self.respond('', tools=tools, input=[*say('tools'), *turn]).output_text, TEXTS['unicode'])

    def test_responses_schema(self):
        reply = self.client.responses.parse(model=MODEL, input=say('json'), max_output_tokens=400, text_format=Person)
        self.assertEqual(reply.output_parsed, ADA)

    # /v1/messages

    def message(self, marker, **options):
        return {'model': MODEL, 'messages': say(marker), 'max_tokens': 400, **options}

    def messages_both(self, options):
        """The whole message, which the streamed one must equal."""
        whole = self.anthropic.messages.create(**options)
        with self.anthropic.messages.stream(**options) as stream:
            final = stream.get_final_message()

        def rows(message):
            return [block.model_dump(exclude={'id', 'signature'}, exclude_none=True) for block in message.content]
        self.assertEqual((rows(final), final.stop_reason), (rows(whole), whole.stop_reason))
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        return whole

    def test_messages_text(self):
        for marker in ('', 'unicode'):
            reply = self.messages_both(self.message(marker))
            self.assertEqual(([block.text for block in reply.content], reply.stop_reason), ([TEXTS[marker]], 'end_turn'))
        self.assertEqual(self.messages_both(self.message('endless', max_tokens=9)).stop_reason, 'max_tokens')
        stopped = self.messages_both(self.message('unicode', stop_sequences=['👩']))
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ('stop_sequence', '👩'))

    def test_messages_tools(self):
        tools = [{'name': 'weather', 'description': 'The weather of a city.', 'input_schema': WEATHER}]
        for marker, wanted in (('tool', [PARIS]), ('tools', BOTH)):
            reply = self.messages_both(self.message(marker, tools=tools))
            uses = [block for block in reply.content if block.type == 'tool_use']
            self.assertEqual(([block.input for block in uses], reply.stop_reason), (wanted, 'tool_use'))
        result = {'role': 'user', 'content': [{'type': 'tool_result', 'tool_use_id': uses[0].id, 'content': 'Sun. [[unicode]]'}]}
        turns = [*say('tools'), {'role': 'assistant', 'content': [block.model_dump(exclude_none=True) for block in reply.content]}, result]
        self.assertEqual(self.messages_both(self.message('', tools=tools, messages=turns)).content[-1].text, TEXTS['unicode'])

    def test_messages_thinking(self):
        reply = self.messages_both(self.message('thought', max_tokens=2000, thinking={'type': 'enabled', 'budget_tokens': 1024}))
        self.assertEqual([block.type for block in reply.content], ['thinking', 'text'])
        self.assertIn('2 + 3 is 5', reply.content[0].thinking)


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    SCRIPTED = [sys.argv.pop(1), str(SCRIPTS)]
    sys.exit(gtest_report.main())
