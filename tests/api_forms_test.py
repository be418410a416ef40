#!/usr/bin/env python3
"""`/v1/responses` and `/v1/messages` over HTTP: streams against whole answers, conversations with tools that are sent back, what is stored,
faults in the words of each API.

    api_forms_test.py SCRIPTED_SERVER

The model says what tests/scripted/scripts.json has for the last marker in the conversation. The order of events is checked by forms_test.
"""
import json
import signal
import sys
import unittest

import gtest_report
from serve_harness import LONG, LONGEST, MODEL, ROOT, Server

SCRIPTS = ROOT / 'tests' / 'scripted' / 'scripts.json'
TEXTS = json.loads(SCRIPTS.read_text())
CITY = {'type': 'object', 'properties': {'city': {'type': 'string'}, 'days': {'type': 'integer'}}}
CHAT_TOOL = {'type': 'function', 'function': {'name': 'weather', 'description': 'The weather.', 'parameters': CITY}}
THINKING = {'chat_template_kwargs': {'enable_thinking': True}}
MARKERS = ('', 'unicode', 'thought', 'tool', 'tools', 'thought_tool', 'json')


def asked(marker):
    return f'Please [[{marker}]]' if marker else 'Please'


def responses(marker='', **body):
    return {'model': MODEL, 'input': asked(marker), 'temperature': 0, 'max_output_tokens': 400,
            'tools': [{'type': 'function', 'name': 'weather', 'description': 'The weather.', 'parameters': CITY}],
            **(THINKING if marker.startswith('thought') else {}), **body}


def messages(marker='', **body):
    return {'model': MODEL, 'max_tokens': 400, 'messages': [{'role': 'user', 'content': asked(marker)}], 'temperature': 0,
            'tools': [{'name': 'weather', 'description': 'The weather.', 'input_schema': CITY}],
            'thinking': {'type': 'enabled' if marker.startswith('thought') else 'disabled'}, **body}


def without_ids(value):
    if isinstance(value, list):
        return [without_ids(one) for one in value]
    if isinstance(value, dict):
        return {name: without_ids(one) for name, one in value.items() if name not in ('id', 'call_id', 'created_at', 'signature')}
    return value


def start(*flags):
    return Server(*flags, '--max-num-seqs', '8', program=(SCRIPTED, str(SCRIPTS)), longest=LONGEST)


def events(text):
    """The events' data; names are those of the data."""
    read = []
    for block in text.decode().split('\n\n'):
        if block and not block.startswith(':'):
            name, data = block.split('\n')
            read.append(json.loads(data.removeprefix('data: ')))
            assert name == 'event: ' + read[-1]['type'], block
    return read


class Forms(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = start('--speculative-config', '{"method": "mtp", "num_speculative_tokens": 2}')

    @classmethod
    def tearDownClass(cls):
        assert cls.server.end() == 0

    def stream(self, path, body):
        status, headers, text = self.server.ask(path, {**body, 'stream': True})
        self.assertEqual((status, headers['Content-Type']), (200, 'text/event-stream'), text)
        return events(text)

    def count(self, chat):
        return self.server.ok('/tokenize', {'model': MODEL, **chat})['count']

    # streams

    def test_a_stream_of_responses_is_the_answer(self):
        for marker in MARKERS:
            whole = self.server.ok('/v1/responses', responses(marker))
            told = self.stream('/v1/responses', responses(marker))
            last = told[-1]['response']
            for one in (whole, last):
                one['usage'].pop('input_tokens_details')
            self.assertEqual(without_ids(last), without_ids(whole), marker)
            self.assertEqual([e['item'] for e in told if e['type'] == 'response.output_item.done'], last['output'])
            self.assertEqual(whole['status'], 'completed')
            self.assertEqual(whole['usage']['output_tokens_details']['reasoning_tokens'] > 0, marker.startswith('thought'))

    def test_a_stream_of_messages_is_the_answer(self):
        for marker in MARKERS:
            whole = self.server.ok('/v1/messages', messages(marker))
            told = self.stream('/v1/messages', messages(marker))
            blocks = []
            for event in told:
                if event['type'] == 'content_block_start':
                    blocks.append(event['content_block'])
                    blocks[-1]['json'] = ''
                elif event['type'] == 'content_block_delta':
                    (name, text), = ((k, v) for k, v in event['delta'].items() if k != 'type')
                    name = 'json' if name == 'partial_json' else name
                    blocks[-1][name] += text
            for block in blocks:
                text = block.pop('json')
                if text:
                    block['input'] = json.loads(text)
            self.assertEqual(without_ids(blocks), without_ids(whole['content']), marker)
            self.assertEqual(told[-2]['delta']['stop_reason'], whole['stop_reason'])
            self.assertEqual(told[-2]['usage']['output_tokens'], whole['usage']['output_tokens'])

    def test_what_a_model_says_is_read_as_in_a_chat(self):
        for marker in MARKERS:
            chat = self.server.ok('/v1/chat/completions', {'model': MODEL, 'messages': [{'role': 'user', 'content': asked(marker)}],
                                                           'temperature': 0, 'max_tokens': 400, 'tools': [CHAT_TOOL],
                                                           'chat_template_kwargs': {'enable_thinking': marker.startswith('thought')}})
            said = chat['choices'][0]['message']
            calls = [(c['function']['name'], json.loads(c['function']['arguments'])) for c in said.get('tool_calls') or []]
            message = self.server.ok('/v1/messages', messages(marker))['content']
            self.assertEqual(''.join(b.get('text', '') for b in message).strip(), (said['content'] or '').strip())
            self.assertEqual(''.join(b.get('thinking', '') for b in message), said.get('reasoning') or '')
            self.assertEqual([(b['name'], b['input']) for b in message if b['type'] == 'tool_use'], calls)
            output = self.server.ok('/v1/responses', responses(marker))['output']
            texts = {kind: ''.join(i['content'][0]['text'] for i in output if i['type'] == kind) for kind in ('message', 'reasoning')}
            self.assertEqual(texts['message'].strip(), (said['content'] or '').strip())
            self.assertEqual(texts['reasoning'], said.get('reasoning') or '')
            self.assertEqual([(i['name'], json.loads(i['arguments'])) for i in output if i['type'] == 'function_call'], calls)
            self.assertEqual(bool(calls), marker in ('tool', 'tools', 'thought_tool'))

    # conversations

    def test_a_conversation_with_tools_in_messages(self):
        first = self.server.ok('/v1/messages', messages('thought_tool'))
        self.assertEqual([b['type'] for b in first['content']], ['thinking', 'tool_use'])
        self.assertEqual(first['stop_reason'], 'tool_use')
        call = first['content'][1]
        turns = [{'role': 'user', 'content': asked('thought_tool')}, {'role': 'assistant', 'content': first['content']},
                 {'role': 'user', 'content': [{'type': 'tool_result', 'tool_use_id': call['id'], 'content': [{'type': 'text', 'text': 'Sun.'}]},
                                              {'type': 'text', 'text': asked('json'), 'cache_control': {'type': 'ephemeral'}}]}]
        body = messages('thought', messages=turns)
        chat = [turns[0],
                {'role': 'assistant', 'content': '', 'reasoning_content': first['content'][0]['thinking'],
                 'tool_calls': [{'id': call['id'], 'type': 'function', 'function': {'name': call['name'], 'arguments': json.dumps(call['input'])}}]},
                {'role': 'tool', 'tool_call_id': call['id'], 'content': 'Sun.'}, {'role': 'user', 'content': asked('json')}]
        expected = self.count({'messages': chat, 'tools': [CHAT_TOOL], **THINKING})
        self.assertEqual(self.server.ok('/v1/messages/count_tokens', body)['input_tokens'], expected)
        second = self.server.ok('/v1/messages', body)
        usage = second['usage']
        self.assertEqual(usage['input_tokens'] + usage['cache_read_input_tokens'], expected)
        again = self.server.ok('/v1/messages', body)['usage']
        self.assertGreater(again['cache_read_input_tokens'], 0)
        self.assertEqual(again['input_tokens'] + again['cache_read_input_tokens'], expected)

    def test_a_conversation_with_tools_in_responses(self):
        first = self.server.ok('/v1/responses', responses('thought_tool', instructions='Be brief.'))
        self.assertEqual([i['type'] for i in first['output']], ['reasoning', 'function_call'])
        call = first['output'][1]
        result = [{'type': 'function_call_output', 'call_id': call['call_id'], 'output': 'Sun.'}, {'role': 'user', 'content': asked('json')}]
        chat = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': asked('thought_tool')},
                {'role': 'assistant', 'content': '', 'reasoning_content': first['output'][0]['content'][0]['text'],
                 'tool_calls': [{'id': call['call_id'], 'type': 'function', 'function': {'name': call['name'], 'arguments': call['arguments']}}]},
                {'role': 'tool', 'tool_call_id': call['call_id'], 'content': 'Sun.'}, {'role': 'user', 'content': asked('json')}]
        expected = self.count({'messages': chat, 'tools': [CHAT_TOOL], **THINKING})
        replayed = [{'role': 'user', 'content': asked('thought_tool')}, *first['output'], *result]
        sent = self.server.ok('/v1/responses', responses('thought', input=replayed, instructions='Be brief.'))
        self.assertEqual(sent['usage']['input_tokens'], expected)
        # By its id: the same, with what was stored.
        kept = self.server.ok('/v1/responses', responses('thought', input=result, instructions='Be brief.', previous_response_id=first['id']))
        self.assertEqual(kept['usage']['input_tokens'], expected)
        self.assertGreater(kept['usage']['input_tokens_details']['cached_tokens'], 0)
        self.assertEqual(kept['previous_response_id'], first['id'])
        self.assertEqual(without_ids(kept['output']), without_ids(sent['output']))
        # Instructions are not stored, and the conversation goes on from there once more.
        third = self.server.ok('/v1/responses', responses(input='And?', previous_response_id=kept['id'], stream=False, **THINKING))
        self.assertGreater(third['usage']['input_tokens'], expected)

    def test_a_custom_tool_gets_a_text(self):
        body = responses('tool', tools=[{'type': 'custom', 'name': 'weather', 'description': 'x'}, {'type': 'web_search'}])
        told = self.stream('/v1/responses', body)
        item = told[-1]['response']['output'][-1]
        self.assertEqual((item['type'], item['name']), ('custom_tool_call', 'weather'))
        self.assertTrue(item['id'].startswith('ctc_') and item['call_id'].startswith('call_'))
        self.assertEqual([e['input'] for e in told if e['type'] == 'response.custom_tool_call_input.done'], [item['input']])
        self.server.ok('/v1/responses', responses(input=[{'role': 'user', 'content': 'a'}, item, {
            'type': 'custom_tool_call_output', 'call_id': item['call_id'], 'output': 'done'}]))

    def test_noise_of_agents_changes_no_prompt(self):
        def count(system):
            return self.server.ok('/v1/messages/count_tokens', messages(system=system))['input_tokens']
        plain = count('You help.')
        self.assertEqual(count('x-anthropic-billing-header: cc_version=1; cch=ab12;\nYou help.'), plain)
        self.assertEqual(count([{'type': 'text', 'text': 'x-anthropic-billing-header: cch=77;'},
                                {'type': 'text', 'text': 'You help.', 'cache_control': {'type': 'ephemeral'}}]), plain)
        self.assertEqual(count('You help.\nmy x-anthropic-billing-header'),
                         self.count({'messages': [{'role': 'system', 'content': 'You help.\nmy x-anthropic-billing-header'},
                                                  {'role': 'user', 'content': 'Please'}], 'tools': [CHAT_TOOL],
                                     'chat_template_kwargs': {'enable_thinking': False}}))

    def test_ends_of_messages(self):
        body = messages('', tools=[])
        self.assertEqual(self.server.ok('/v1/messages', body)['stop_reason'], 'end_turn')
        cut = self.server.ok('/v1/messages', {**body, 'max_tokens': 2})
        self.assertEqual((cut['stop_reason'], cut['usage']['output_tokens']), ('max_tokens', 2))
        stopped = self.server.ok('/v1/messages', {**body, 'stop_sequences': ['what', 'never']})
        self.assertEqual((stopped['stop_reason'], stopped['stop_sequence']), ('stop_sequence', 'what'))
        self.assertEqual(stopped['content'][0]['text'], TEXTS[''].split('what')[0])
        self.assertEqual(self.server.ok('/v1/messages', {**messages('tool'), 'tool_choice': {'type': 'none'}})['stop_reason'], 'end_turn')
        one = self.server.ok('/v1/messages', {**messages('tools'), 'tool_choice': {'type': 'auto', 'disable_parallel_tool_use': True}})
        self.assertEqual([b['type'] for b in one['content']].count('tool_use'), 1)

    # what is stored

    def test_responses_are_stored(self):
        made = self.server.ok('/v1/responses', responses(metadata={'a': 'b'}, user='me', reasoning={'effort': 'none'}, include=['reasoning.encrypted_content']))
        self.assertEqual((made['metadata'], made['user'], made['temperature'], made['store']), ({'a': 'b'}, 'me', 0, True))
        path = '/v1/responses/' + made['id']
        self.assertEqual(self.server.ok(path), made)
        self.assertEqual(self.server.ask(path + '/cancel', {})[0], 400)
        self.assertTrue(json.loads(self.server.ask(path, method='DELETE')[2])['deleted'])
        for status, answer in ((404, self.server.ask(path)), (404, self.server.ask(path, method='DELETE')), (404, self.server.ask(path + '/cancel', {})),
                               (405, self.server.ask(path, {})), (404, self.server.ask(path + '/x')),
                               (400, self.server.ask('/v1/responses', responses(previous_response_id=made['id'])))):
            self.assertEqual(answer[0], status, answer)
            self.assertTrue(json.loads(answer[2])['error']['message'])
        unkept = self.server.ok('/v1/responses', responses(store=False))
        self.assertEqual(self.server.ask('/v1/responses/' + unkept['id'])[0], 404)

    def test_responses_in_the_background(self):
        made = self.server.ok('/v1/responses', responses('tool', background=True))
        self.assertEqual((made['status'], made['background']), ('in_progress', True))
        path = '/v1/responses/' + made['id']
        self.assertTrue(self.server.until(lambda: self.server.ok(path)['status'] != 'in_progress'))
        self.assertEqual(without_ids(self.server.ok(path)['output']), without_ids(self.server.ok('/v1/responses', responses('tool'))['output']))
        endless = self.server.ok('/v1/responses', responses('endless', background=True, max_output_tokens=LONG['max_tokens']))
        path = '/v1/responses/' + endless['id']
        self.assertEqual(self.server.ok(path + '/cancel', {})['status'], 'cancelled')
        self.assertEqual(self.server.ok(path)['status'], 'cancelled')
        self.assertEqual(self.server.ok(path + '/cancel', {})['status'], 'cancelled')
        self.assertTrue(self.server.until(lambda: self.server.metric('vllm:num_requests_running') == 0))
        for wrong in ({'stream': True}, {'store': False}):
            self.assertEqual(self.server.ask('/v1/responses', responses(background=True, **wrong))[0], 400)

    # faults

    def test_faults_of_messages_are_anthropics(self):
        for status, kind, answer in (
                (400, 'invalid_request_error', self.server.ask('/v1/messages', b'{')),
                (400, 'invalid_request_error', self.server.ask('/v1/messages', messages(temperature=-1))),
                (400, 'invalid_request_error', self.server.ask('/v1/messages', messages(stop_sequences=[5]))),
                (400, 'invalid_request_error', self.server.ask('/v1/messages', {'messages': []})),
                (404, 'not_found_error', self.server.ask('/v1/messages', messages(model='claude'))),
                (404, 'not_found_error', self.server.ask('/v1/messages/batches', messages())),
                (405, 'invalid_request_error', self.server.ask('/v1/messages')),
                (400, 'invalid_request_error', self.server.ask('/v1/messages/count_tokens', messages(messages=5)))):
            self.assertEqual(answer[0], status, answer)
            body = json.loads(answer[2])
            self.assertEqual((body['type'], body['error']['type']), ('error', kind), body)
        long = messages(messages=[{'role': 'user', 'content': 'word ' * LONGEST}])
        status, _, text = self.server.ask('/v1/messages', long)
        self.assertEqual(status, 400)
        self.assertRegex(json.loads(text)['error']['message'], rf'^prompt is too long: .*maximum context length is {LONGEST} tokens')
        self.assertGreater(self.server.ok('/v1/messages/count_tokens', long)['input_tokens'], LONGEST)

    def test_faults_name_the_fields_of_the_form(self):
        for param, body in {'max_output_tokens': {'max_output_tokens': 0}, 'input': {'input': 'word ' * LONGEST},
                            'text.format': {'text': {'format': {'type': 'x'}}}, 'temperature': {'temperature': -1},
                            'text.format.schema': {'text': {'format': {'type': 'json_object', 'schema': CITY}}},
                            'text.format.strictly': {'text': {'format': {'type': 'json_schema', 'name': 'n', 'schema': CITY, 'strictly': True}}},
                            'text.format.strict': {'text': {'format': {'type': 'json_schema', 'name': 'n', 'schema': CITY, 'strict': 'yes'}}}}.items():
            status, _, text = self.server.ask('/v1/responses', responses(**body))
            error = json.loads(text)['error']
            self.assertEqual((status, error['param']), (400, param), text)
            self.assertNotIn('response_format.', error['message'])
        form = {'type': 'json_schema', 'schema': CITY, 'strictly': True}
        status, _, text = self.server.ask('/v1/messages', messages(output_config={'format': form}))
        self.assertEqual(status, 400)
        self.assertIn('output_config.format has no \\"strictly\\"', text.decode())
        status, _, text = self.server.ask('/v1/responses', responses(input='word ' * LONGEST, truncation='auto'))  # nothing is dropped
        self.assertEqual((status, json.loads(text)['error']['code']), (400, 'context_length_exceeded'))
        self.assertEqual(self.server.ok('/v1/responses', responses(truncation='auto'))['truncation'], 'auto')

    def test_numbers_come_back_as_they_were_sent(self):
        said = self.server.ok('/v1/responses', responses(temperature=0.7, top_p=0.95))
        self.assertEqual((said['temperature'], said['top_p']), (0.7, 0.95))

    def test_what_would_change_the_answer_and_is_not_there_is_refused(self):
        for param, body in {'prompt': {'prompt': {'id': 'p'}}, 'conversation': {'conversation': 'c'}, 'include': {'include': ['message.output_text.logprobs']},
                            'top_logprobs': {'top_logprobs': 2}, 'truncation': {'truncation': 'middle'},
                            'context_management': {'context_management': [{'type': 'compaction'}]}}.items():
            status, _, text = self.server.ask('/v1/responses', responses(**body))
            error = json.loads(text)['error']
            self.assertEqual((status, error['type'], error['param']), (400, 'invalid_request_error', param), text)
            self.assertTrue(error['message'].startswith(param), text)
        for field, body in {'mcp_servers': {'mcp_servers': [{'type': 'url', 'url': 'https://x', 'name': 'x'}]}, 'container': {'container': 'c'},
                            'context_management': {'context_management': {'edits': [{'type': 'clear_tool_uses_20250919'}]}},
                            'output_config': {'output_config': {'format': {'type': 'xml'}}},
                            'output_format': {'output_format': {'type': 'json_schema', 'schema': {}}}}.items():
            for path in '/v1/messages', '/v1/messages/count_tokens':
                status, _, text = self.server.ask(path, messages(**body))
                error = json.loads(text)['error']
                self.assertEqual((status, error['type']), (400, 'invalid_request_error'), (path, text))
                self.assertTrue(error['message'].startswith(field), (path, text))
        self.server.ok('/v1/responses', responses(service_tier='flex', text={'verbosity': 'low'}, max_tool_calls=1, context_management=[]))
        self.server.ok('/v1/messages', messages(service_tier='auto', container=None, mcp_servers=[], metadata={'user_id': 'u'}, cache_control={'type': 'ephemeral'},
                                                context_management={'edits': [{'type': 'clear_thinking_20251015', 'keep': 'all'}]}))

    def test_chats_may_have_what_has_no_effect_and_nothing_that_would_have_one(self):
        body = {'model': MODEL, 'messages': [{'role': 'user', 'content': 'Please [[unicode]]'}], 'max_tokens': 50, 'temperature': 0}
        plain = self.server.ok('/v1/chat/completions', body)['choices']
        for more in {'verbosity': 'low'}, {'verbosity': 'high'}, {'modalities': ['text']}, {'modalities': None, 'audio': None}, {'prediction': {'type': 'content', 'content': 'x'}}:
            self.assertEqual(self.server.ok('/v1/chat/completions', {**body, **more})['choices'], plain, more)
        self.assertNotIn('verbosity', self.server.log())
        for field, value in ('audio', {'voice': 'x', 'format': 'wav'}), ('modalities', ['text', 'audio']), ('web_search_options', {'search_context_size': 'low'}):
            status, _, text = self.server.ask('/v1/chat/completions', {**body, field: value})
            error = json.loads(text)['error']
            self.assertEqual((status, error['param'], error['code']), (400, field, 'unsupported_parameter'))
            self.assertTrue(error['message'].startswith(field + ' can'), error)

    def test_another_model_is_not_served_on_any_route(self):
        for path, body in {'/v1/messages': messages(), '/v1/messages/count_tokens': messages(), '/v1/responses': responses(),
                           '/v1/chat/completions': {'messages': [{'role': 'user', 'content': 'x'}]}, '/v1/completions': {'prompt': 'x'},
                           '/v1/embeddings': {'input': 'x'}, '/tokenize': {'prompt': 'x'}, '/detokenize': {'tokens': [1]}}.items():
            status, _, text = self.server.ask(path, {**body, 'model': 'another'})
            self.assertEqual(status, 404, (path, text))
            self.assertEqual(json.loads(text)['error']['type'], 'not_found_error', path)
            self.assertIn('the model "another" does not exist', json.loads(text)['error']['message'], path)

    def test_messages_may_hide_thoughts(self):
        shown = self.server.ok('/v1/messages', messages('thought'))
        hidden = self.server.ok('/v1/messages', messages('thought', thinking={'type': 'enabled', 'display': 'omitted'}))
        self.assertEqual([b['type'] for b in shown['content']], ['thinking', 'text'])
        self.assertEqual(hidden['content'], shown['content'][1:])

    def test_counting_reads_tools_as_creating_does(self):
        bad = {'type': 'object', 'properties': {'a': {'not': {}}}}
        for body in ({'tools': [{'name': '', 'input_schema': CITY}]}, {'tools': [{'name': 'f'}]}, {'tools': {}}, {'tool_choice': {'type': 'tool', 'name': 'other'}},
                     {'tool_choice': {'type': 'any'}, 'tools': []}, {'tool_choice': {'type': 'auto', 'disable_parallel_tool_use': 5}},
                     {'tools': [{'name': 'f', 'input_schema': CITY, 'strict': 5}]}, {'tools': [{'name': 'f', 'input_schema': [CITY]}]},
                     {'tools': [{'name': 'f', 'input_schema': CITY, 'description': 5}]}, {'output_config': {'format': {'type': 'json_schema', 'schema': [CITY]}}}, {'output_config': {'effort': [0]}},
                     {'tools': [{'name': 'f', 'input_schema': bad}], 'tool_choice': {'type': 'any'}}):
            faults = [self.server.ask(path, messages(**body)) for path in ('/v1/messages', '/v1/messages/count_tokens')]
            self.assertEqual([fault[0] for fault in faults], [400, 400], (body, faults))
            self.assertEqual(faults[0][2], faults[1][2], body)
        for body in ({'tools': [{'type': 'function', 'function': {}}]}, {'tools': [{'type': 'function', 'function': {'name': 'f', 'parameters': []}}]},
                     {'tools': [{'type': 'function', 'function': {'name': 'f', 'description': {}}}]}, {'tools': [{'type': {}, 'function': {'name': 'f'}}]}, {'tools': {}}, {'tools': [5]}, {'tools': [CHAT_TOOL], 'tool_choice': 'some'}, {'tool_choice': 'required'},
                     {'tools': [CHAT_TOOL], 'tool_choice': {'type': 'function', 'function': {'name': 'other'}}}, {'tools': [CHAT_TOOL], 'parallel_tool_calls': 5}):
            body = {'messages': [{'role': 'user', 'content': 'a'}], **body}
            faults = [self.server.ask(path, {'model': MODEL, **body}) for path in ('/v1/chat/completions', '/tokenize')]
            self.assertEqual(faults[0][0], 400, faults)
            self.assertEqual(faults[0][2], faults[1][2], body)

    def test_what_an_answer_may_take_is_bounded(self):
        for path, body in (('/v1/messages', messages('')), ('/v1/responses', responses(''))):
            for field, value in ('prompt_logprobs', -1), ('prompt_logprobs', 10**6), ('n', 10**4):
                status, _, text = self.server.ask(path, {**body, field: value})
                self.assertEqual(status, 400, (path, field, text[:200]))

    def test_a_client_that_leaves_ends_its_answer(self):
        for path, body in (('/v1/responses', responses('endless', max_output_tokens=LONG['max_tokens'])), ('/v1/messages', messages('endless', max_tokens=LONG['max_tokens']))):
            connection = self.server.connect()
            connection.request('POST', path, json.dumps({**body, 'stream': True}))
            connection.getresponse().read(20)
            connection.close()
            self.assertTrue(self.server.until(lambda: self.server.metric('vllm:num_requests_running') == 0))


class Ends(unittest.TestCase):
    def test_a_stream_that_is_given_up_says_so(self):
        for path, body, last in (('/v1/responses', responses('endless', max_output_tokens=LONG['max_tokens']), 'response.failed'),
                                 ('/v1/messages', messages('endless', max_tokens=LONG['max_tokens']), 'error')):
            server = start('--shutdown-timeout', '0')
            connection = server.connect()
            connection.request('POST', path, json.dumps({**body, 'stream': True}))
            with connection.getresponse() as reply:
                first = reply.read(30)
                server.process.send_signal(signal.SIGTERM)
                told = events(first + reply.read())
            connection.close()
            self.assertEqual(told[-1]['type'], last)
            self.assertEqual(server.end(), 0)

    def test_keys(self):
        server = start('--api-key', 'secret')
        status, _, text = server.ask('/v1/messages', messages())
        self.assertEqual((status, json.loads(text)['type'], json.loads(text)['error']['type']), (401, 'error', 'authentication_error'))
        self.assertEqual(server.ask('/v1/messages', messages(), headers={'x-api-key': 'secret', 'anthropic-version': '2023-06-01'})[0], 200)
        self.assertEqual(server.ask('/v1/responses', responses())[0], 401)
        self.assertEqual(server.ask('/v1/responses', responses(), headers={'Authorization': 'Bearer secret'})[0], 200)
        self.assertEqual(server.end(), 0)


if __name__ == '__main__':
    SCRIPTED = sys.argv.pop(1)
    sys.exit(gtest_report.main())
