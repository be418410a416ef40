// Markdown of an answer as DOM nodes. The text becomes a tree of the tags named here, and only text nodes carry what a
// model wrote: no markup of it is ever parsed as HTML.
//   node: a string, or {tag, children, href?, language?, start?, align?}

const MOST_DEPTH = 12; // of lists in quotes in lists
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}([-*_])\s*(\1\s*){2,}$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

export function parse(text) {
  return blocks(text.replace(/\r\n?/g, '\n').split('\n'), 0);
}

function blocks(lines, depth) {
  const out = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    if (!line.trim()) {
      i++;
      continue;
    }
    let match;
    if ((match = FENCE.exec(line))) {
      const body = [];
      for (i++; i < lines.length && !closes(lines[i], match[1]); i++) body.push(lines[i]);
      i++;
      out.push({tag: 'pre', language: match[2], children: [body.join('\n')]});
    } else if ((match = HEADING.exec(line))) {
      out.push({tag: 'h' + match[1].length, children: inline(withoutMarks(match[2]))});
      i++;
    } else if (RULE.test(line)) {
      out.push({tag: 'hr', children: []});
      i++;
    } else if (/^ {0,3}>/.test(line) && depth < MOST_DEPTH) {
      const inner = [];
      for (; i < lines.length && /^ {0,3}>/.test(lines[i]); i++) inner.push(lines[i].replace(/^ {0,3}> ?/, ''));
      out.push({tag: 'blockquote', children: blocks(inner, depth + 1)});
    } else if (ITEM.test(line) && depth < MOST_DEPTH) {
      i = list(lines, i, depth, out);
    } else if (line.includes('|') && i + 1 < lines.length && lines[i + 1].includes('-') && TABLE_RULE.test(lines[i + 1])) {
      i = table(lines, i, out);
    } else {
      const words = [line.trim()];
      for (i++; i < lines.length && !begins(lines[i], depth); i++) words.push(lines[i].trim());
      out.push({tag: 'p', children: inline(words.join('\n'))});
    }
  }
  return out;
}

// "Title ##" is "Title".
function withoutMarks(title) {
  let end = title.trimEnd().length;
  const trimmed = end;
  while (end > 0 && title[end - 1] === '#') end--;
  return end === 0 || title[end - 1] === ' ' ? title.slice(0, end).trimEnd() : title.slice(0, trimmed);
}

function closes(line, fence) {
  const trimmed = line.trim();
  return trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length);
}

// Whether a paragraph ends before this line.
function begins(line, depth) {
  return !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) ||
      (depth < MOST_DEPTH && (/^ {0,3}>/.test(line) || ITEM.test(line)));
}

const indent = (line) => line.length - line.trimStart().length;

function list(lines, i, depth, out) {
  const first = ITEM.exec(lines[i]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  while (i < lines.length) {
    const match = ITEM.exec(lines[i]);
    if (!match || match[1].length < first[1].length || /\d/.test(match[2]) !== ordered || RULE.test(lines[i])) break;
    const inner = [match[3]];
    const base = match[1].length;
    for (i++; i < lines.length; i++) {
      const blank = !lines[i].trim();
      const next = i + 1 < lines.length ? lines[i + 1] : '';
      if (blank ? !(next.trim() && indent(next) > base) : indent(lines[i]) <= base && begins(lines[i], depth)) break;
      if (!blank && indent(lines[i]) <= base && !inner[inner.length - 1].trim()) break;
      inner.push(lines[i].slice(Math.min(indent(lines[i]), base + 2)));
    }
    items.push({tag: 'li', children: tight(blocks(inner, depth + 1))});
    // An empty line between two items is no end.
    if (i + 1 < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1]) && indent(lines[i + 1]) >= first[1].length) i++;
  }
  const node = {tag: ordered ? 'ol' : 'ul', children: items};
  if (ordered && parseInt(first[2], 10) !== 1) node.start = parseInt(first[2], 10);
  out.push(node);
  return i;
}

// An item's only paragraph needs no element.
function tight(children) {
  if (children.length > 0 && children[0].tag === 'p') return [...children[0].children, ...children.slice(1)];
  return children;
}

function cells(line) {
  const parts = line.trim().replace(/^\|/, '').replace(/(^|[^\\])\|$/, '$1').split(/(?<!\\)\|/);
  return parts.map((part) => part.trim().replaceAll('\\|', '|'));
}

function table(lines, i, out) {
  const head = cells(lines[i]);
  const aligns = cells(lines[i + 1]).map((rule) => {
    if (!rule.endsWith(':')) return '';
    return rule.startsWith(':') ? 'center' : 'right';
  });
  const row = (tag, texts) => ({
    tag: 'tr',
    children: head.map((_, j) => ({tag, align: aligns[j] ?? '', children: inline(texts[j] ?? '')})),
  });
  const body = [];
  const thead = {tag: 'thead', children: [row('th', head)]};
  for (i += 2; i < lines.length && lines[i].includes('|'); i++) body.push(row('td', cells(lines[i])));
  out.push({tag: 'table', children: [thead, {tag: 'tbody', children: body}]});
  return i;
}

const MARKS = [['**', 'strong'], ['__', 'strong'], ['~~', 'del'], ['*', 'em'], ['_', 'em']];
const isWord = (c) => c !== undefined && /[\p{L}\p{N}]/u.test(c);

// Only http and https; anything else stays text.
export function safeUrl(text) {
  try {
    const url = new URL(text.trim());
    return url.protocol === 'http:' || url.protocol === 'https:' ? url.href : null;
  } catch {
    return null;
  }
}

function inline(text, depth = 0) {
  const out = [];
  const absent = new Map(); // what was not found behind some place is not looked for again
  const find = (what, from) => {
    if (from >= (absent.get(what) ?? Infinity)) return -1;
    const at = text.indexOf(what, from);
    if (at < 0) absent.set(what, from);
    return at;
  };
  let plain = '';
  const push = (node) => {
    if (plain) out.push(plain);
    plain = '';
    out.push(node);
  };
  let i = 0;
  while (i < text.length) {
    const c = text[i];
    if (c === '\\' && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? '')) {
      plain += text[i + 1];
      i += 2;
      continue;
    }
    if (c === '\n') {
      push({tag: 'br', children: []});
      i++;
      continue;
    }
    const found = c === '`' ? codeSpan(text, i, find) : depth < MOST_DEPTH ? special(text, i, find, depth) : null;
    if (found) {
      push(found.node);
      i = found.end;
    } else if (c === '`') { // a whole run of them, else each would be looked at again
      const run = /^`+/.exec(text.slice(i, i + 64))[0];
      plain += run;
      i += run.length;
    } else {
      plain += c;
      i++;
    }
  }
  if (plain) out.push(plain);
  return out;
}

function codeSpan(text, i, find) {
  const ticks = /^`+/.exec(text.slice(i, i + 64))[0];
  const end = find(ticks, i + ticks.length);
  if (end < 0) return null;
  const code = text.slice(i + ticks.length, end).replaceAll('\n', ' ');
  return {node: {tag: 'code', children: [code.trim() || code]}, end: end + ticks.length};
}

// A link, an address or a mark that begins at i.
function special(text, i, find, depth) {
  const c = text[i];
  if (c === '[' || (c === '!' && text[i + 1] === '[')) {
    const open = c === '!' ? i + 1 : i;
    const middle = find('](', open);
    const end = middle < 0 ? -1 : find(')', middle);
    if (end < 0) return null;
    const href = safeUrl(text.slice(middle + 2, end).trim().split(/\s/)[0]);
    if (!href) return null;
    return {node: {tag: 'a', href, children: inline(text.slice(open + 1, middle), MOST_DEPTH)}, end: end + 1};
  }
  if (c === 'h' && !isWord(text[i - 1]) && (text.startsWith('http://', i) || text.startsWith('https://', i))) {
    const address = /^[^\s<>"'`]+/.exec(text.slice(i, i + 2048))[0].replace(/[.,:;!?)\]*_]+$/, '');
    const href = safeUrl(address);
    return href && {node: {tag: 'a', href, children: [address]}, end: i + address.length};
  }
  for (const [mark, tag] of MARKS) {
    if (!text.startsWith(mark, i)) continue;
    const begin = i + mark.length;
    if (!text[begin] || /\s/.test(text[begin])) return null;
    if (c === '_' && isWord(text[i - 1])) return null;
    let end = find(mark, begin + 1);
    if (mark.length === 1) {
      // The end of a double mark is none of a single one.
      while (end >= 0 && text[end + 1] === c && text[end + 2] !== c) end = find(mark, end + 2);
    }
    if (end < 0 || /\s/.test(text[end - 1]) || (c === '_' && isWord(text[end + mark.length]))) return null;
    return {node: {tag, children: inline(text.slice(begin, end), depth + 1)}, end: end + mark.length};
  }
  return null;
}

// Headings of answers stand below the page's.
const TAG_OF = {h1: 'h3', h2: 'h4', h3: 'h5', h4: 'h6', h5: 'h6', h6: 'h6'};

function build(node, copyButton) {
  if (typeof node === 'string') return document.createTextNode(node);
  const element = document.createElement(TAG_OF[node.tag] ?? node.tag);
  if (node.tag === 'pre') {
    const box = document.createElement('div');
    box.className = 'codeblock';
    const bar = document.createElement('div');
    bar.className = 'bar';
    const name = document.createElement('span');
    name.textContent = node.language || 'text';
    bar.append(name, copyButton(() => node.children[0]));
    const code = document.createElement('code');
    code.textContent = node.children[0];
    element.append(code);
    element.tabIndex = 0; // it may scroll
    box.append(bar, element);
    return box;
  }
  if (node.href) {
    element.href = node.href;
    element.target = '_blank';
    element.rel = 'noopener noreferrer';
  }
  if (node.start) element.start = node.start;
  if (node.align) element.className = 'to-' + node.align;
  for (const child of node.children) element.append(build(child, copyButton));
  if (node.tag !== 'table') return element;
  const scroller = document.createElement('div');
  scroller.className = 'scroller';
  scroller.tabIndex = 0;
  scroller.append(element);
  return scroller;
}

// Shows `text` in `element`; blocks that are as they were stay, with what is selected in them.
export function show(element, text, copyButton) {
  const nodes = parse(text);
  const keys = nodes.map((node) => JSON.stringify(node));
  const old = element.shownBlocks ?? [];
  let same = 0;
  while (same < old.length && same < keys.length && old[same] === keys[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const node of nodes.slice(same)) element.append(build(node, copyButton));
  element.shownBlocks = keys;
}
