"use strict";
// Two methods on the same images and seeds: the test of common/report/paired.py, number for number, and the counts beside it.
const paired = (() => {
  const LEVEL = 0.95, MOST = 1e6;

  // gamma(a + 1/2) / gamma(a): its asymptotic series, reached by recurrence
  function gammaRatio(a) {
    let factor = 1;
    for (; a < 100; a += 1) factor *= a / (a + 0.5);
    return factor * Math.sqrt(a) * (1 - 1 / (8 * a) + 1 / (128 * a ** 2) + 5 / (1024 * a ** 3) - 21 / (32768 * a ** 4));
  }

  // the continued fraction of the incomplete beta function, by Lentz's method
  function fraction(a, b, x) {
    const bounded = (value) => (Math.abs(value) < 1e-300 ? 1e-300 : value);
    let c = 1, d = 1 / bounded(1 - ((a + b) * x) / (a + 1)), product = d;
    for (let m = 1, change = 0; m < 1e5 && Math.abs(change - 1) > 1e-15; m += 1) {
      const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
      d = 1 / bounded(1 + even * d);
      c = bounded(1 + even / c);
      product *= c * d;
      const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
      d = 1 / bounded(1 + odd * d);
      c = bounded(1 + odd / c);
      change = c * d;
      product *= change;
    }
    return product;
  }

  // Student's t: the probability of more than t, for t of either sign
  function upper(t, freedom) {
    if (t < 0) return 1 - upper(-t, freedom);
    const a = freedom / 2, x = freedom / (freedom + t * t), y = (t * t) / (freedom + t * t);
    const front = (Math.exp(-a * Math.log1p((t * t) / freedom)) * Math.sqrt(y) * gammaRatio(a)) / Math.sqrt(Math.PI);
    return x < (a + 1) / (a + 2.5) ? (0.5 * front * fraction(a, 0.5, x)) / a : 0.5 - front * fraction(0.5, a, y);
  }

  // the t that is exceeded with this probability, below 1/2: Newton's steps from below, where the tail is convex
  function quantile(probability, freedom) {
    let t = 0;
    for (let i = 0; i < 200; i += 1) {
      const density = (gammaRatio(freedom / 2) / Math.sqrt(Math.PI * freedom)) * Math.exp((-(freedom + 1) / 2) * Math.log1p((t * t) / freedom));
      const step = (upper(t, freedom) - probability) / density;
      t += step;
      if (Math.abs(step) < 1e-13 * (1 + t)) break;
    }
    return t;
  }

  // net: of each image, on how many seeds only the first is right less only the second; bySeed: the same of each seed
  function test(bySeed, net, wins, losses) {
    const seeds = bySeed.length, images = net.length, number = seeds * images;
    if (seeds < 2 || images < 2) return null;
    const sum = (values) => values.reduce((all, value) => all + value, 0), squares = (values) => values.reduce((all, value) => all + value * value, 0);
    const whole = sum(bySeed) ** 2, ofSeed = seeds * squares(bySeed), ofImage = images * squares(net);
    const ofSeeds = (ofSeed - whole) / (number * (seeds - 1)), ofImages = (ofImage - whole) / (number * (images - 1));
    const rest = (number * (wins + losses) - ofSeed - ofImage + whole) / (number * (seeds - 1) * (images - 1));
    const total = ofSeeds + Math.max(ofImages - rest, 0), mean = (wins - losses) / number;
    if (total === 0) return { low: 100 * mean, high: 100 * mean, p: 1, either: 1 };
    const freedom = ofSeeds ? Math.min(MOST, (seeds - 1) * (total / ofSeeds) ** 2) : MOST;
    const error = Math.sqrt(total / number), reach = quantile((1 - LEVEL) / 2, freedom) * error;
    return { low: 100 * (mean - reach), high: 100 * (mean + reach), p: upper(mean / error, freedom), either: 2 * upper(Math.abs(mean / error), freedom) };
  }

  // which runs of two methods meet: {method, run} with run null for all of them; of seeds that both have, two single runs as they are
  function meeting(column, first, second) {
    const starts = [];
    column.methods.reduce((place, [, seeds], i) => { starts[i] = place; return place + seeds.length; }, 0);
    const runs = ({ method, run }) => column.methods[method][1].map((seed, i) => [seed, starts[method] + i]).filter((_, i) => run === null || i === run);
    const [ours, theirs] = [runs(first), runs(second)];
    if (first.run !== null && second.run !== null) return [[ours[0][1], theirs[0][1]]];
    return ours.flatMap(([seed, place]) => theirs.filter(([other]) => other === seed).map(([, other]) => [place, other]));
  }

  // pairs: places of runs in the bits; returns counts over images and seeds, of all and by class, and where they differ
  function compare(column, bits, pairs) {
    const stride = Math.ceil(column.methods.reduce((all, [, seeds]) => all + seeds.length, 0) / 8);
    const right = (image, run) => (bits[image * stride + (run >> 3)] >> (7 - (run & 7))) & 1;
    const bySeed = pairs.map(() => 0), net = [], classes = new Map(), differing = [];
    let image = 0;
    for (const [label, images] of column.classes) {
      if (!classes.has(label)) classes.set(label, { label, images: 0, both: 0, first: 0, second: 0, neither: 0 });
      const here = classes.get(label);
      here.images += images;
      for (let i = 0; i < images; i += 1, image += 1) {
        let ours = 0, theirs = 0;
        pairs.forEach(([one, other], k) => {
          const a = right(image, one), b = right(image, other);
          here[a ? (b ? "both" : "first") : b ? "second" : "neither"] += 1;
          bySeed[k] += a - b;
          ours += a;
          theirs += b;
        });
        net.push(ours - theirs);
        if (ours !== theirs) differing.push({ image, label, ours, theirs });
      }
    }
    const each = [...classes.values()].sort((a, b) => a.label - b.label);
    const all = (name) => each.reduce((sum, one) => sum + one[name], 0);
    const outcome = { seeds: pairs.length, images: image, both: all("both"), first: all("first"), second: all("second"), neither: all("neither") };
    differing.sort((a, b) => Math.abs(b.ours - b.theirs) - Math.abs(a.ours - a.theirs) || a.image - b.image);
    return { ...outcome, classes: each, differing, test: test(bySeed, net, outcome.first, outcome.second) };
  }

  async function inflate(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  return { upper, quantile, test, meeting, compare, inflate };
})();
