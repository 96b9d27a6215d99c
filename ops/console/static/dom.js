// Text into nodes and rows into tables, touching only what has changed. Data become text, never markup.

export function byId(id) {
    return document.getElementById(id);
}

export function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
}

export function element(tag, { className = "", text = "", ...attributes } = {}, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
}

// A button that calls back with itself.
export function button(text, onClick, attributes = {}) {
    const node = element("button", { type: "button", text, ...attributes });
    node.addEventListener("click", () => onClick(node));
    return node;
}

// rows: lists of cells. A cell is a text or { text, share, className, isHeader }; share: 0 to 1, drawn as a bar.
export function fillRows(body, rows) {
    while (body.rows.length > rows.length) body.deleteRow(-1);
    rows.forEach((cells, idx) => fillRow(body.rows[idx] ?? body.insertRow(), cells));
}

export function fillList(list, texts) {
    while (list.children.length > texts.length) list.lastElementChild.remove();
    texts.forEach((text, idx) => setText(list.children[idx] ?? list.appendChild(element("li")), text));
}

function fillRow(row, cells) {
    while (row.cells.length > cells.length) row.deleteCell(-1);
    cells.forEach((cell, idx) => {
        const { text, share, className = "", isHeader = false } = typeof cell === "string" ? { text: cell } : cell;
        const node = row.cells[idx] ?? row.appendChild(newCell(isHeader));
        setText(node, text);
        const name = share === undefined ? className : `${className} bar`.trim();
        if (node.className !== name) node.className = name;
        const width = share === undefined ? "" : `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
        if (node.style.getPropertyValue("--share") !== width) node.style.setProperty("--share", width);
    });
}

function newCell(isHeader) {
    return isHeader ? element("th", { scope: "row" }) : element("td");
}
