// On paper: light, everything drawn, tables open, and every chart a picture as wide as there is room.

let printing = false;
let undone = [];

function beforePrint() {
  if (!view) return;
  printing = true;
  applyTheme();
  undone = [...document.querySelectorAll("details:not([open])")].map(opened);
  drawParts();
  for (const [id, drawn] of drawnCharts) undone.push(pictured(element(id), drawn));
}

function afterPrint() {
  undone.forEach((undo) => undo());
  undone = [];
  printing = false;
  applyTheme();
  if (view) drawParts();
}

function opened(details) {
  details.open = true;
  return () => {
    details.open = false;
  };
}

// Charts are drawn for the screen, and would be cut or blank at the width of paper.
function pictured(holder, drawn) {
  // colours of glyphs would else wait for the next frame
  for (const part of drawn.renderer_views.values()) if (part.glyph) part.set_visuals();
  const { canvas } = drawn.export("png");
  canvas.className = "printed";
  canvas.removeAttribute("style");
  // charts beside each other keep one scale
  holder.style.flexGrow = canvas.width;
  holder.append(canvas);
  return () => canvas.remove();
}
