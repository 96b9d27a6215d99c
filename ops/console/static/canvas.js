// A canvas as wide as it is asked to be, sharp on every screen, and a call when a node's width changes.

export const FONT = "11px system-ui, sans-serif";

// Its context, in CSS pixels, cleared.
export function fitted(canvas, width, height) {
    const scale = window.devicePixelRatio || 1;
    const [columns, rows] = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== columns || canvas.height !== rows) {
        canvas.width = columns;
        canvas.height = rows;
        canvas.style.width = `${width}px`;
        canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d", { alpha: true });
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    return context;
}

// Width is handed over, so that nobody has to ask for it while drawing.
export function onWidth(node, callback) {
    let known = -1;
    new ResizeObserver(([entry]) => {
        const width = Math.floor(entry.contentRect.width);
        if (width !== known) callback((known = width));
    }).observe(node);
}
