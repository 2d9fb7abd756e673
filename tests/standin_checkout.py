"""A folder that looks like the authors' checkouts to `lamella reproduce --against`: same names, written for tests.

Nothing of it was taken from anybody. Every file begins with an import of a package that does not exist, as real ones
begin with packages that may not be there.
"""

from pathlib import Path

__all__ = ["FILES", "write_checkout"]

FILES: dict[str, str] = {}

FILES["methods/inflora.py"] = """
class InfLoRA(BaseLearner):
    def update_DualGPM(self, mat_list):
        def axes(M):
            U, s, _ = np.linalg.svd(M)
            return U, s**2

        share = self.lamb + (self.lame - self.lamb) * self._cur_task / self.total_sessions
        for number, G in enumerate(mat_list):
            whole = float((G * G).sum())
            if number == len(self.feature_list):
                vectors, energies = axes(G)
                count = max(int((np.cumsum(energies) / whole < share).sum()), 1)
                self.feature_list.append(vectors[:, :count])
                self.project_type.append("remove")
            elif self.project_type[number] == "remove":
                kept = self.feature_list[number]
                vectors, energies = axes(G - kept @ (kept.T @ G))
                missing, count = energies.sum(), 0
                while (whole - missing) / whole < share:
                    missing, count = missing - energies[count], count + 1
                self.feature_list[number] = np.concatenate([kept, vectors[:, :count]], 1)
            else:
                free = self.feature_list[number]
                vectors, energies = axes(free @ (free.T @ G))
                missing, count = energies.sum(), 0
                while missing / whole >= 1 - share:
                    missing, count = missing - energies[count], count + 1
                rest = free - vectors[:, :count] @ (vectors[:, :count].T @ free)
                self.feature_list[number] = axes(rest)[0][:, : free.shape[1] - count]
            kept = self.feature_list[number]
            if self.project_type[number] == "remove" and 2 * kept.shape[1] > len(kept):
                self.feature_list[number] = np.linalg.svd(kept)[0][:, kept.shape[1] :]
                self.project_type[number] = "retain"
"""
FILES["utils/schedulers.py"] = """
import math


class CosineSchedule:
    def __init__(self, optimizer, K):
        self.groups, self.K, self.steps = optimizer.param_groups, K, 0
        self.first = [group["lr"] for group in self.groups]

    def step(self):
        for group, first in zip(self.groups, self.first):
            group["lr"] = first * math.cos(0.495 * math.pi * self.steps / (self.K - 1))
        self.steps += 1
"""
FILES["src/uie_trainer_lora.py"] = """
class UIETrainer(Seq2SeqTrainer):
    def training_step(self, model: nn.Module, inputs: Dict[str, Union[torch.Tensor, Any]]) -> torch.Tensor:
        model.train()
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        named = dict(self.model.named_parameters())
        for name, new in named.items():
            if "loranew_A" in name:
                shared = named[name.replace("loranew_A", "lora_A")] @ new.T
                loss = loss + self.args.lamda_1 * shared.abs().sum() + self.args.lamda_2 * new.norm()
        logger.info(f"{loss.item()}")
        loss.backward()
        return loss.detach()
"""
FILES["backbone/lora.py"] = """
class ParameterWrapper(nn.Module):
    def __init__(self, param):
        super(ParameterWrapper, self).__init__()
        self.param = param

    def forward(self, x):
        return self.param * x


class _LoRA_qkv_timm_train(nn.Module):
    def __init__(
        self, qkv, a_q, b_q, a_v, b_v, task_id, saved_A, saved_B, t_layer_i, rank, factor, factor_prev, eval1=False
    ):
        super().__init__()
        self.qkv, self.new = qkv, [(a_q.cuda(), b_q.cuda()), (a_v.cuda(), b_v.cuda())]
        self.task_id, self.saved_A, self.saved_B, self.at = task_id, saved_A, saved_B, 2 * t_layer_i
        self.factor, self.factor_prev = factor, factor_prev

    def forward(self, x):
        width, parts = self.qkv.in_features, []
        for i, (a, b) in enumerate(self.new):
            added = self.factor[0](b(a(x)))
            for t in range(self.task_id):
                A = self.saved_A[f"saved_A_{t}"][self.at + i].weight
                B = self.saved_B[f"saved_B_{t}"][self.at + i].weight
                added = added + self.factor_prev[t](x @ A.T @ B.T / A.norm() / B.norm())
            parts.append(added)
        return self.qkv(x) + torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]], -1)
"""
FILES["RanPAC.py"] = """
class Learner(BaseLearner):
    def optimise_ridge_parameter(self, Features, Y):
        cut = int(0.8 * len(Features))
        fit, held = Features[:cut].double(), Features[cut:].double()
        errors = {}
        for power in range(-8, 9):
            level = 10.0**power * torch.eye(fit.shape[1])
            answer = held @ torch.linalg.solve(fit.T @ fit + level, fit.T @ Y[:cut].double())
            errors[10.0**power] = float(F.mse_loss(answer, Y[cut:].double()))
        return min(errors, key=errors.get)

    def replace_fc(self, trainloader):
        network = self._network.eval()
        found = [(network.convnet(data.cuda()), label) for _, data, label in trainloader]
        h = torch.relu(torch.cat([f for f, _ in found]).to("cuda:0") @ self.W_rand)
        Y = target2onehot(torch.cat([label for _, label in found]), self.total_classnum)
        self.G, self.Q = self.G + h.T @ h, self.Q + h.T @ Y
        ridge = self.optimise_ridge_parameter(h, Y)
        inverse = torch.linalg.inv(self.G.double() + ridge * torch.eye(len(self.G)))
        network.fc.weight.data = (inverse @ self.Q.double()).T.float().to(device="cuda")
"""
FILES["utils/toolkit.py"] = """
def target2onehot(targets, n_classes):
    return F.one_hot(targets, n_classes).float()
"""
KD = """
T = 2

def _KD_loss(pred, soft, T):
    return -((soft / T).softmax(1) * (pred / T).log_softmax(1)).sum(1).mean()
"""
FILES |= {f"models/{name}.py": KD for name in ("icarl", "lwf", "wa")}
FILES["utils/inc_net.py"] = """
class IncrementalNet(BaseNet):
    def weight_align(self, increment):
        lengths = self.fc.weight.data.norm(dim=1)
        self.fc.weight.data[-increment:] *= lengths[:-increment].mean() / lengths[-increment:].mean()
"""
FILES["models/base.py"] = """
EPSILON = 1e-8
batch_size = 64

class BaseLearner(object):
    def _construct_exemplar(self, data_manager, m):
        for number in range(self._known_classes, self._total_classes):
            data, _, there = data_manager.get_dataset(np.arange(number, number + 1), source="train", ret_data=True)
            x, _ = self._extract_vectors(DataLoader(there, batch_size=batch_size))
            x = x / (np.linalg.norm(x, axis=1, keepdims=True) + EPSILON)
            chosen = []
            for k in range(1, m + 1):
                away = np.linalg.norm(x.mean(0) - (x + x[chosen].sum(0)) / k, axis=1)
                away[chosen] = np.inf
                chosen.append(int(away.argmin()))
            own = np.array([data[i] for i in chosen])
            self._data_memory = np.concatenate([self._data_memory, own])
"""
FILES["models/simplecil.py"] = """
class SimpleCIL(BaseLearner):
    def replace_fc(self, trainloader, model, args):
        with torch.no_grad():
            found = [(model.eval()(data.cuda())["features"], label) for _, data, label in trainloader]
        x, y = torch.cat([f for f, _ in found]), torch.cat([label for _, label in found])
        for number in np.unique(self.train_dataset.labels):
            self._network.fc.weight.data[number] = x[y == number].sum(0) / (y == number).sum()
"""

E2LORA = "class_incremental_learning"
FILES[f"{E2LORA}/utils/inc_net.py"] = """
init_threshold = 0.99999

def get_principal_direction_svd(act_data):
    D = act_data.detach().double().flatten(0, -2)
    D = D - D.mean(0)
    variances, vectors = torch.linalg.eigh(D.T @ D / (len(D) - 1))
    return variances.flip(0).clamp_min(0), vectors.flip(1).float()


def get_energy_threshold(eigenvalues, threshold=0.999):
    return 1 + int((eigenvalues.cumsum(0) / eigenvalues.sum() <= threshold).sum())


class LoRAMlp(Mlp):
    def __init__(self, inputs, hidden, outputs):
        super().__init__(inputs, hidden, outputs)
        self.lora_A1, self.lora_B1 = LoRAMlp.start(self, inputs, hidden)

    def start(self, inputs, outputs):
        self.sizes, self.role, self.pca_lora, self.eigenvalues = (inputs, outputs), "student", False, []
        self.pairs = nn.ModuleList(), nn.ModuleList()
        return self.pairs

    def add_task(self):
        (d, R), t, threshold = self.sizes, len(self.eigenvalues), init_threshold
        keep = [get_energy_threshold(own, threshold) for own in self.eigenvalues]
        while sum(keep) > t * R // (t + 1):
            threshold -= threshold_step
            keep = [get_energy_threshold(own, threshold) for own in self.eigenvalues]
        freed = [B.weight.data[:, k:] for B, k in zip(self.pairs[1], keep)]
        for A, B, k in zip(*self.pairs, keep):
            A.weight.data, B.weight.data = A.weight.data[:k], B.weight.data[:, :k]
        freed = torch.cat(freed, 1) if t else torch.zeros(R, R)
        for layers, weight in zip(self.pairs, (torch.zeros(freed.shape[1], d), freed)):
            layers.append(nn.Linear(*weight.T.shape, bias=False))
            layers[-1].weight.data = weight

    def added(self, x):
        both = list(zip(*self.pairs))
        if self.pca_lora:
            A, B = (layer.weight.data for layer in both[-1])
            variances, U = get_principal_direction_svd(x @ (B @ A).T)
            self.eigenvalues.append(variances)
            U = U[:, : len(A)]
            for layer, weight in zip(both[-1], (U.T @ B @ A, U)):
                layer.weight.data = weight
        return sum((B(A(x)) for A, B in both[: len(both) - (self.role == "teacher")]), 0)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x) + self.added(x)))


class LoRAAttention(Attention):
    add_task, added = LoRAMlp.add_task, LoRAMlp.added

    def __init__(self, inputs, heads):
        super().__init__(inputs, heads, qkv_bias=True)
        self.lora_A, self.lora_B = LoRAMlp.start(self, inputs, 3 * inputs)

    def forward(self, x, attn_mask=None):
        together = self.qkv(x) + self.added(x)
        q, k, v = together.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class BaseNet(nn.Module):
    def __init__(self, args, pretrained):
        super().__init__()
        self.backbone, self.fc = get_backbone(args, pretrained), None
        for block in self.backbone.blocks:
            fc1, fc2 = block.mlp.fc1, block.mlp.fc2
            attention = LoRAAttention(block.attn.qkv.in_features, block.attn.num_heads)
            mlp = LoRAMlp(fc1.in_features, fc1.out_features, fc2.out_features)
            attention.load_state_dict(block.attn.state_dict())
            mlp.load_state_dict(block.mlp.state_dict())
            block.attn, block.mlp = attention, mlp


class E2LoRANet(BaseNet):
    def __init__(self, args, pretrained=True):
        super().__init__(args, pretrained)

    def extract_vector(self, x):
        return self.backbone(x)

    def update_fc(self, nb_classes):
        if self.fc is None:
            self.fc = SimpleContinualLinear(self.backbone.out_dim, nb_classes)
        else:
            self.fc.update(nb_classes)

    def forward(self, x, bcb_no_grad=False):
        return self.fc(self.extract_vector(x))
"""
FILES[f"{E2LORA}/backbone/linears.py"] = """
class SimpleContinualLinear(nn.Module):
    def __init__(self, embed_dim, nb_classes):
        super().__init__()
        self.width, self.heads = embed_dim, nn.ModuleList()
        self.update(nb_classes)

    def update(self, nb_classes):
        self.heads.append(nn.Sequential(nn.Linear(self.width, nb_classes)))

    def forward(self, x):
        return {"logits": torch.cat([head(x) for head in self.heads], 1)}
"""
FILES[f"{E2LORA}/models/e2lora.py"] = """
class Learner(BaseLearner):
    def _run(self, train_loader, test_loader, optimizer, scheduler):
        def play(role):
            for block in self._network.backbone.blocks:
                block.attn.role = block.mlp.role = role

        for _ in tqdm(range(self.epochs)):
            for _, x, y in train_loader:
                old, losses = self._known_classes, []
                logits = self._network.train()(x)["logits"]
                losses.append(F.cross_entropy(logits[:, old:], y - old))
                if self._cur_task:
                    play("teacher")
                    with torch.no_grad():
                        p = (self._network(x)["logits"][:, :old] / 2).softmax(1)
                    play("student")
                    q = (logits[:, :old] / 2).log_softmax(1)
                    losses.append((p * (p.log() - q)).sum(1).mean())
                optimizer.zero_grad()
                sum(losses).backward()
                optimizer.step()
            scheduler.step()

    def _pca_lora(self, train_loader):
        parts = [part for block in self._network.backbone.blocks for part in (block.attn, block.mlp)]
        for turning in (True, False):
            for part in parts:
                part.pca_lora = turning
            if turning:
                self._network.eval()(next(iter(train_loader))[1])
"""
FILES["models/decomposed_lora.py"] = """
def _random_fixed_A_init(dim, r):
    return nn.Linear(dim, r, bias=False)


def _zero_B_init(dim, r):
    return nn.Linear(r, 3 * dim, bias=False)


def _energy_merge(B, A, old, new, gamma):
    of_old, of_new = ((A @ M * A).sum(1) for M in (old, new))
    return B * (gamma * of_new / (of_old + gamma * of_new)) @ A


class FrozenA_TrainableB(nn.Module):
    def __init__(self, dim, r):
        super().__init__()
        self.A, self.B = _random_fixed_A_init(dim, r).double(), _zero_B_init(dim, r).double()


class Attention_LoRA(nn.Module):
    def __init__(self, dim, num_heads=8, qkv_bias=False, r=64, n_tasks=10):
        super().__init__()
        self.heads, self.rank = num_heads, r
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        self.S_lora, self.P_lora = (
            nn.ModuleList([FrozenA_TrainableB(dim, r) for _ in range(n_tasks)]) for _ in range(2)
        )
        self.seen, self.prev_matrix = [], torch.zeros(dim, dim, dtype=torch.float64)

    def _init_params(self, args):
        self.gamma = args["merge_gamma"]
        self.scales = args["slora_gamma"] / 2, args["plora_gamma"] / 2

    def moment(self):
        x = torch.cat(self.seen)
        self.seen = []
        return x.T @ x / len(x)

    def design(self, task, new):
        root = torch.linalg.cholesky(self.prev_matrix) if task else None
        directions = [torch.linalg.eigh(new + self.prev_matrix)[1].flip(1)]
        if task:
            inverse = torch.linalg.inv(root)
            best = torch.linalg.eigh(inverse @ new @ inverse.T)[1].flip(1)[:, : self.rank]
            directions.append(torch.linalg.qr(inverse.T @ best)[0])
        for units, U in zip((self.S_lora, self.P_lora), directions):
            units[task].A.weight.data = U[:, : self.rank].T / 3**0.5

    def fold(self, task, new):
        S, P = ((units[task].A.weight, units[task].B.weight) for units in (self.S_lora, self.P_lora))
        shared = _energy_merge(S[1], S[0], self.prev_matrix, new, self.gamma) if task else S[1] @ S[0]
        own = P[1] @ P[0] if task else 0
        self.qkv.weight.data += self.scales[0] * shared + self.scales[1] * own
        self.prev_matrix = self.prev_matrix + new
        S[1].data.zero_(), P[1].data.zero_()

    def forward(self, x, task, get_cur_feat=False):
        if get_cur_feat:
            self.seen.append(x.flatten(0, 1))
        units = (self.S_lora, self.P_lora) if task else (self.S_lora,)
        added = sum(g * unit[task].B(unit[task].A(x)) for g, unit in zip(self.scales, units))
        q, k, v = (self.qkv(x) + added).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
"""
FILES["methods/dlora.py"] = """
class Learner(BaseLearner):
    def _train(self, train_loader, test_loader):
        layers = [module for module in self._network.modules() if isinstance(module, Attention_LoRA)]

        def moments():
            for _, x, _ in train_loader:
                self._network(x, get_cur_feat=True)
            return [layer.moment() for layer in layers]

        with torch.no_grad():
            for layer, new in zip(layers, moments()):
                layer.design(self._cur_task, new)
        weights = [layer.S_lora[self._cur_task].B.weight for layer in layers]
        optimizer = optim.SGD(weights, lr=self.lrate if self._cur_task else self.init_lr)
        self.train_function(
            train_loader, test_loader, optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        )
        with torch.no_grad():
            for layer, new in zip(layers, moments()):
                layer.fold(self._cur_task, new)
            for layer, new in zip(layers, moments()):
                layer.prev_matrix = layer.prev_matrix + new
"""
FILES["models/network.py"] = """
class MANet(nn.Module):
    def interface(self, image, task_id=None):
        f = self.image_encoder(image, task_id=self.numtask - 1)[:, 0]
        rows = torch.cat([head.weight for head in self.classifier_pool])
        return F.cosine_similarity(f[:, None], rows[None], dim=2)
"""


def write_checkout(folder: Path, **changed: str) -> Path:
    """Write the files, and make it look like a clone at a commit.

    Args:
        folder: where.
        changed: what stands in place of a text, in whatever file has it.
    """
    for name, content in FILES.items():
        for old, new in changed.items():
            content = content.replace(old, new)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(("" if "schedulers" in name else "import a_package_that_is_not_here\n") + content)
    (folder / ".git" / "refs" / "heads").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git" / "refs" / "heads" / "main").write_text("0123456789" * 4 + "\n")
    return folder
