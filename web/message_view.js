// One message on the page. What a model or a user wrote goes into text nodes only.
import {show} from './markdown.js';

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', '#i-' + name);
  svg.append(use);
  return svg;
}

export function button(text, onClick, label = text) {
  const element = make('button', 'quiet', text);
  element.type = 'button';
  if (label !== text) element.setAttribute('aria-label', label);
  element.addEventListener('click', onClick);
  return element;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Over plain http there is no clipboard but on this machine.
  const area = make('textarea', 'sr');
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  if (!done) throw new Error('copying is not allowed');
}

function copyButton(textOf, label = 'Copy the code') {
  const element = button('Copy', async () => {
    try {
      await copy(textOf());
      element.textContent = 'Copied';
    } catch {
      element.textContent = 'Not copied';
    }
    setTimeout(() => (element.textContent = 'Copy'), 1500);
  }, label);
  return element;
}

function prettyArguments(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // as far as it has come
  }
}

export class MessageView {
  // actions: {regenerate, edit, resume, giveResults}, each called with the message.
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    const isUser = message.role === 'user';
    this.element = make('article', 'message ' + message.role);
    this.element.setAttribute('aria-label', {user: 'You', tool: 'Result of a tool'}[message.role] ?? 'Answer');
    this.pictures = make('div', 'pictures');
    this.thinking = make('details', 'thinking');
    this.summary = make('summary');
    this.thought = make('div', 'prose');
    this.thinking.append(this.summary, this.thought);
    this.body = make('div', isUser ? 'bubble' : 'prose');
    this.calls = make('div', 'calls');
    this.fault = make('p', 'fault');
    this.foot = make('div', 'foot');
    this.element.append(this.pictures, this.thinking, this.body, this.calls, this.fault, this.foot);
    for (const [i, url] of (message.images ?? []).entries()) {
      const picture = make('img');
      picture.src = url;
      picture.alt = `Attached picture ${i + 1}`;
      this.pictures.append(picture);
    }
    this.update(false);
  }

  // isRunning: the answer is being made.
  update(isRunning) {
    const m = this.message;
    this.pictures.hidden = !(m.images?.length > 0);
    this.thinking.hidden = !m.reasoning;
    if (m.reasoning) {
      const over = m.seconds !== undefined;
      const text = over ? `Thought for ${m.seconds < 10 ? m.seconds.toFixed(1) : Math.round(m.seconds)} s` : isRunning ? 'Thinking…' : 'Thought';
      if (this.summary.textContent !== text) this.summary.textContent = text;
      show(this.thought, m.reasoning, copyButton);
    }
    if (m.role === 'user')
      this.body.textContent = m.content;
    else if (m.role === 'tool')
      this.showResult(m);
    else
      show(this.body, m.content, copyButton);
    this.body.hidden = !m.content && m.role !== 'tool';
    this.updateCalls(m.toolCalls ?? []);
    this.fault.textContent = m.fault ?? '';
    this.fault.hidden = !m.fault;
    this.element.classList.toggle('running', isRunning);
    this.element.classList.toggle('waiting', isRunning && !m.content && !m.reasoning && !m.toolCalls);
    if (isRunning)
      this.foot.replaceChildren();
    else if (!this.foot.hasChildNodes() || this.wasRunning)
      this.fillFoot();
    this.wasRunning = isRunning;
  }

  updateCalls(calls) {
    this.calls.hidden = calls.length === 0;
    while (this.calls.childNodes.length < calls.length) {
      const box = make('section', 'call');
      box.append(make('h3'), make('pre'));
      box.lastChild.tabIndex = 0;
      this.calls.append(box);
    }
    for (const [i, call] of calls.entries()) {
      const [name, text] = this.calls.childNodes[i].childNodes;
      name.textContent = 'Calls ' + call.name;
      const pretty = prettyArguments(call.arguments);
      if (text.textContent !== pretty) text.textContent = pretty;
    }
  }

  showResult(m) {
    const box = make('section', 'call result');
    box.append(make('h3', '', 'Result of ' + m.name), make('pre', '', prettyArguments(m.content)));
    box.lastChild.tabIndex = 0;
    this.body.replaceChildren(box);
  }

  // A field for the result of each call; the page runs no tools itself.
  askForResults() {
    const form = make('form', 'edit');
    const areas = this.message.toolCalls.map((call) => {
      const area = make('textarea');
      area.setAttribute('aria-label', 'Result of ' + call.name);
      area.placeholder = 'Result of ' + call.name;
      area.rows = 2;
      return area;
    });
    const row = make('div', 'row end');
    const send = make('button', 'primary', 'Send');
    row.append(button('Cancel', () => this.fillFoot(), 'Give no results'), send);
    form.append(...areas, row);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.actions.giveResults(this.message, areas.map((area) => area.value));
    });
    this.foot.replaceChildren(form);
    areas[0].focus();
  }

  fillFoot() {
    const m = this.message;
    const parts = [];
    if (m.role === 'tool') return this.foot.replaceChildren();
    if (m.toolCalls?.length && !m.broken) parts.push(button('Give results', () => this.askForResults(), 'Give the results of the calls'));
    const isUser = m.role === 'user';
    if (m.content) parts.push(copyButton(() => m.content, isUser ? 'Copy the message' : 'Copy the answer'));
    if (isUser) parts.push(button('Edit', () => this.edit(), 'Edit the message'));
    else parts.push(button('Regenerate', () => this.actions.regenerate(m), 'Regenerate the answer'));
    if (m.broken && m.content) parts.push(button('Continue', () => this.actions.resume(m), 'Continue the answer'));
    if (m.note) parts.push(make('span', 'note', m.note));
    this.foot.replaceChildren(...parts);
  }

  // The message becomes a field; what comes after it is replaced when it is sent.
  edit() {
    const form = make('form', 'edit');
    const area = make('textarea');
    area.value = this.message.content;
    area.setAttribute('aria-label', 'Edited message');
    area.rows = Math.min(12, area.value.split('\n').length + 1);
    const row = make('div', 'row end');
    const cancel = button('Cancel', () => close());
    const send = make('button', 'primary', 'Send');
    row.append(cancel, send);
    form.append(area, row);
    const close = () => {
      form.replaceWith(this.body);
      this.foot.hidden = false;
      this.foot.querySelector('button')?.focus();
    };
    const submit = (event) => {
      event.preventDefault();
      if (!area.value.trim()) return;
      form.replaceWith(this.body);
      this.foot.hidden = false;
      this.actions.edit(this.message, area.value);
    };
    form.addEventListener('submit', submit);
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') close();
      else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) submit(event);
      else return;
      event.stopPropagation();
    });
    this.body.replaceWith(form);
    this.foot.hidden = true;
    area.focus();
  }
}
